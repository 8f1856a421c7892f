//! What carries the bytes of a connection: today the sockets' system calls that neither std nor
//! monoio offers.

pub(crate) mod sys;
