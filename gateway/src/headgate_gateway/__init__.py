"""The Headgate gateway: one gate in front of every model, with budgets that hold."""
