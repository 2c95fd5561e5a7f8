"""Benchmarks: what an upload and a download cost, beside what people use today. Not shipped.

`scripts/bench` makes the environments and runs this package; `docs/benchmarks.md` has method and results.

    data         checkpoints that do not repeat, and what must come out of them
    server       an S3 that is faster than its clients and counts what reaches it
                 connection, framing: bytes in and out; holdings, operations: what it has and does;
                 authority: its certificate; ceiling: its own limits
    contenders   the command lines, ours and theirs; crt_upload: a bare uploader on awscrt
    process      a command as a whole process tree: wall, CPU, memory; launch: the program between
    gil          how long one of our runs holds the interpreter's lock
    comparison   interleaved rounds, and the proof that every run did its job
    machine      what it was measured on
    model        time as a function of size, files, cores and bandwidth, fitted to the runs
    report       tables, the document; plot: an SVG
"""
