//! One test binary; a file name says which boundary is crossed.
