//! Room for the values that peers send: bounded from their arrival until the last client has taken
//! them.
//!
//! Owner: one member; a value may be let go of on another thread. Bound: `max` bytes of values
//! above [`SMALL_MAX`], and a single one whatever its size. The smaller ones are bounded by the
//! number of operations and of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Values of up to this many bytes are not counted.
pub const SMALL_MAX: usize = 16 << 10;

/// Counts the bytes of large values that are held.
#[derive(Debug)]
pub struct ValueRoom {
    held: Arc<AtomicUsize>,
    max: usize,
}

/// A large value from a peer, counted as long as it is held.
struct HeldValue {
    value: Bytes,
    held: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for HeldValue {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}

impl Drop for HeldValue {
    fn drop(&mut self) {
        self.held.fetch_sub(self.value.len(), Ordering::Relaxed);
    }
}

impl ValueRoom {
    /// Room for `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { held: Arc::default(), max }
    }

    /// Keeps a value; `None` if there is no room for it. A large value that lies in a `buffer` of
    /// its own is kept with that, and any other is copied.
    ///
    /// # Panics
    /// If the value is large and there is a `buffer` in which it does not lie.
    #[must_use]
    pub fn hold(&self, value: &[u8], buffer: Option<&Bytes>) -> Option<Bytes> {
        if value.len() <= SMALL_MAX {
            return Some(Bytes::copy_from_slice(value));
        }
        let held = self.held.load(Ordering::Relaxed);
        if held > 0 && held.saturating_add(value.len()) > self.max {
            return None;
        }
        self.held.fetch_add(value.len(), Ordering::Relaxed);
        let value = buffer.map_or_else(|| Bytes::copy_from_slice(value), |buffer| buffer.slice_ref(value));
        Some(Bytes::from_owner(HeldValue { value, held: self.held.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_is_kept_where_it_lies() {
        let room = ValueRoom::new(100 << 10);
        let buffer = Bytes::from(vec![7; 60 << 10]);
        let held = room.hold(&buffer[100..], Some(&buffer)).expect("there is room");
        assert_eq!(held.as_ptr(), buffer[100..].as_ptr());
        let small = room.hold(&buffer[..SMALL_MAX], Some(&buffer)).expect("there is room");
        assert_ne!(small.as_ptr(), buffer.as_ptr(), "a small value holds up no large buffer");
    }

    #[test]
    fn large_values_are_counted_until_they_are_let_go_of() {
        let room = ValueRoom::new(100 << 10);
        let large = vec![7; 60 << 10];
        let first = room.hold(&large, None).expect("there is room");
        assert_eq!(first, large);
        assert!(room.hold(&large, None).is_none());
        assert!(room.hold(&large[..SMALL_MAX], None).is_some(), "small ones are not counted");
        let copy = first.clone();
        drop(first);
        assert!(room.hold(&large, None).is_none());
        drop(copy);
        let alone = room.hold(&vec![7; 1 << 20], None).expect("a single one may always be held");
        assert!(room.hold(&large, None).is_none());
        drop(alone);
        assert!(room.hold(&large, None).is_some());
    }
}
