"""The page of verdicts in HTML.

render                    the page, from the templates in web/
views                     what it shows of a comparison: maps, curves and the largest differences
"""
