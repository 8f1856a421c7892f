#![allow(dead_code, unreachable_pub, missing_docs)]
//! Names of addresses, and shares of functions in a capture.

use koltso_profiling::alloc::Symbolise;
use koltso_profiling::capture::{Capture, Frame, FramePlace};

pub struct Names;

impl Symbolise for Names {
    fn frames(&mut self, address: u64, is_leaf: bool, out: &mut Vec<Frame>) {
        let address = address - u64::from(!is_leaf);
        let first = out.len();
        backtrace::resolve(address as *mut _, |symbol| {
            let name = symbol.name().map_or_else(|| format!("{address:#x}"), |name| format!("{name:#}"));
            let file = symbol.filename().map(|file| file.to_string_lossy().into());
            out.push(Frame {
                function: name.into(),
                file,
                line: symbol.lineno().unwrap_or(0),
                place: FramePlace::Inlined,
                address,
            });
        });
        if let Some(last) = out[first..].last_mut() {
            last.place = FramePlace::User;
        } else {
            let function = format!("{address:#x}").into();
            out.push(Frame { function, file: None, line: 0, place: FramePlace::User, address });
        }
    }
}

/// The sum of a value over all stacks that contain a function.
pub fn with(capture: &Capture, value: usize, function: &str) -> i64 {
    let has = |sample: &&koltso_profiling::capture::Sample| {
        capture.stack_at(sample.stack).iter().any(|id| capture.frame_at(*id).function.contains(function))
    };
    capture.samples.iter().filter(has).map(|sample| sample.values[value]).sum()
}
