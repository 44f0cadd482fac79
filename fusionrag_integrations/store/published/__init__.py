"""A store that several machines share: published in versions at a URL.

version.py       Version: which files a store consisted of at one time
blocks.py        those files, as blocks named by their content
version_log.py   the versions in order; publishing one
writer_lease.py  one writer at a time
reader_note.py   which version a reader has
cache.py         where working copies are on this machine
working_copy.py  the directory on this machine in which a version is opened, followed and changed
snapshot.py      the files of a working copy, as they are published
verifying.py     finds damage, and fixes what needs no model
collecting.py    deletes versions and KV that nobody needs any more

At the URL:

versions/000000000007.json   a version; immutable                          (version_log.py)
newest                       the number of a late version
blocks/ab/abcd...            blocks of files; immutable                    (blocks.py)
kv/ab/abcd....safetensors    KV records by their keys; immutable           (kv/shared.py)
writers/                     leases                                        (writer_lease.py)
readers/                     who reads which version                       (reader_note.py)
"""
