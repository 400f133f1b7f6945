"""Nodes of earlier versions beside the present one, as in each upgrade and each rollback."""
