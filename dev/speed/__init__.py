"""How fast it is: each module measures one table, with its baseline in the same run."""
