"""Many runs of one function, over seeds and settings, that go on after a stop."""
