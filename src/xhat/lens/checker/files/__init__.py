"""From files, folders and notebooks to verdicts: what the checker does around `check`.

text, syntax, importing, stubs   the code of a file as functions: imported, or taken from its syntax tree
kinds, pairs              which names are a batch norm, and which forward belongs to which backward
judge                     one file: its pairs, one after the other
worker, pool              the same in processes of their own, with limits on time and memory
submissions, verdicts     which files a folder has, and the verdicts of a file or of many
hints, grades, tables     what students are shown, files for graders, and the terminal
"""
