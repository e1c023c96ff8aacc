"""The promises of a pretext task, a file for each kind; `zoo.testing.check_task` asks them all."""
