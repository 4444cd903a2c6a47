"""The room for sound files: the only one that opens, writes, resamples, cuts and joins them.

`sound` says what a sound is and when it is bad; `read` reads files of any kind and `write` is the one writer;
`folders` walks over a folder of sounds; `resample`, `chunks`, `stereo`, `loudness` and `analyse` work on samples. How a
kind of file is opened stands in `decoders`, and what its bytes say in `containers`, `mpeg` and `ogg`.
"""
