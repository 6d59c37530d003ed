"""Published claims of the five systems beside what this package gives: rows that pass, fail, or say why not."""
