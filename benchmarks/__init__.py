"""Measurements of xhat: `python -m benchmarks.bench` for speed, `python -m benchmarks.exactness` for errors,
`python -m benchmarks.torch_bench` for the speed and memory of xhat.torch beside torch.

Nothing here is imported by the library, and nothing is timed that has not been verified in the same run.

    cases.py         shapes from named networks
    problem.py       their data, and the exact float64 results
    ours.py          xhat, with preallocated results
    rivals.py        PyTorch and JAX
    numba_rival.py   a batch norm written by hand
    floor.py, .cpp   streaming copy and triad
    contest.py       verify, then time in rounds
    targets.py       what is to be reached
    results.py       the results file, and the machine
    report.py        tables for the terminal, the README and Markdown
    torch_*.py       the same for xhat.torch: cases, layers, nets and whole steps, targets, report, bench
"""
