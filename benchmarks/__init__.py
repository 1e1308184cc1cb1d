"""Every figure that the documentation states, from one command each, with the peers beside us in the same run."""
