"""Messages, and the user's state that results from them.

Pure: no I/O and no clock. Only the msg_id of a message that was given none is random.
"""
