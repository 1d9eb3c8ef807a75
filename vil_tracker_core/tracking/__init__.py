"""Stateful inference: the Kalman filter and the online tracker."""
