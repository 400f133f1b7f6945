"""Consumers of stored messages: deliver them to devices, and exchange them with other nodes."""
