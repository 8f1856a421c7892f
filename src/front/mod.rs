//! The protocols that clients speak, one module each: bytes to operations, and their outcomes back
//! to bytes.

pub mod http;
