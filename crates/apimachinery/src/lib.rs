//! Kubernetes API conventions, knowing no kind of ours.
