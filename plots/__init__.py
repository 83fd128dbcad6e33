"""The inspector's pictures: matplotlib figures of traces and priors, drawn off screen."""
