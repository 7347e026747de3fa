"""dynx inside the libraries that people call already; each module imports its library and nothing else imports the modules."""
