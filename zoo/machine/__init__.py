"""The machine a run stands on: processor, devices, processes, saved states and logs."""
