"""What an answer hangs on: runs changed in one place and measured again."""
