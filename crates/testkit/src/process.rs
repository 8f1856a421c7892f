//! Signals for processes that a test has started.

/// Sends `signal` to the process `pid`, which the test has started and not waited for.
#[track_caller]
pub fn send_signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).unwrap();
    assert!(pid > 1, "a signal for every process");
    #[allow(unsafe_code)]
    // SAFETY: kill takes two integers and touches no memory of this process.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "signal {signal} to {pid}: {}", std::io::Error::last_os_error());
}
