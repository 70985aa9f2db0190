"""The corridor: joins the rooms, owns no maths."""
