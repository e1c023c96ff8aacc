"""Reports: one HTML page about one or more checkpoints. `zoo.report(path, folders)` is `zoo.report.page.write_page`."""
