"""What maintainers measure, and how the bundled model was trained. It is no part of the package."""
