"""One file per entry: its configuration tree. Importing one imports no other's libraries."""
