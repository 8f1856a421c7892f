//! Rolled segments that have no sidecar yet, in the order in which they are sealed.

use std::sync::Arc;

use koltso_instrument::Mutex;

use crate::indexed::IndexedSegment;

/// See the module. A segment leaves it once it is sealed.
pub(crate) struct SealQueue(Mutex<Vec<Arc<IndexedSegment>>>);

impl SealQueue {
    /// With what recovery found unsealed.
    pub(crate) fn new(unsealed: Vec<Arc<IndexedSegment>>) -> Self {
        Self(Mutex::new(&"segments to seal", unsealed))
    }

    pub(crate) fn push(&self, segment: Arc<IndexedSegment>) {
        self.0.lock().push(segment);
    }

    pub(crate) fn first(&self) -> Option<Arc<IndexedSegment>> {
        self.0.lock().first().cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<IndexedSegment>> {
        self.0.lock().clone()
    }

    /// It is sealed.
    pub(crate) fn remove(&self, segment: &Arc<IndexedSegment>) {
        self.0.lock().retain(|other| !Arc::ptr_eq(other, segment));
    }
}
