"""Reports out: tables, pictures and files."""
