"""From a configuration to model, data, task and trainer."""
