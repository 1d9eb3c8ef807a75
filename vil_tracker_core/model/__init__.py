"""The network: nn.Modules and nothing else. No state is kept between calls."""
