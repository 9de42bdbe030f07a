"""One report, in every format: `table` for the terminal, `schema` and `sarif` for machines, `page` for people."""
