"""What a notebook and a terminal show of a watch and of its history. It reads, and changes nothing.

`contents` chooses what is shown, `html` and `table` write it, `sparkline` and `plot` draw curves.
"""
