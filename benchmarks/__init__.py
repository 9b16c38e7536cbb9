"""Measurements of xhat. Nothing here is imported by the library, and nothing is timed that has not been verified.

bench, torch_bench, sync_bench      commands: NumPy arrays; xhat.torch; one batch on several processes
exactness                           command: errors of float32 far from zero
page_faults                         command: what the first write of a large tensor costs
report                              command: results files as Markdown

harness     what the commands share: cases and their exact results, races, rows, targets, tables, processes
numpy       xhat, its rivals, and the floor: a streaming copy and triad
torch       single layers, and training steps of networks
sync        measurements of a rank, and the model of docs/scaling.md
"""
