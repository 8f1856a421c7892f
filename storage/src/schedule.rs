//! How the threads around the engine share processors: those that serve requests ask for short
//! slices, those that nobody waits for are nice. Each function concerns the calling thread; where
//! the kernel refuses, nothing changes.

use std::mem;

/// In nanoseconds, less than the 1.4 ms and more that Linux gives by itself. At its least, 0.1 ms,
/// the threads that prepare room for large values came too late where all share one processor: PUT
/// of 20 kB took 15 % more CPU.
const SLICE: u64 = 1_000_000;
const NICE: i32 = 10;

/// For threads that nobody waits for: nicer by ten than they were, so that they give way to
/// those of this program, and to others as much as the whole program does.
#[allow(unsafe_code)]
pub fn be_nice() {
    // SAFETY: plain system calls; on Linux they concern the calling thread only.
    unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        let _ = libc::setpriority(libc::PRIO_PROCESS, 0, now + NICE);
    }
}

/// For threads that serve requests: one that has something to do then takes the processor from a
/// thread with longer slices, such as those that are nice, in the middle of its slice. Niceness and
/// policies stay as they are. Schedulers before Linux 6.12 have no ear for it.
#[allow(unsafe_code)]
pub fn ask_for_short_slices() {
    let Some(mut wish) = attributes() else {
        return;
    };
    if wish.sched_policy == libc::SCHED_OTHER as u32 {
        wish.sched_runtime = SLICE;
        // SAFETY: a plain system call about the calling thread, which reads as much of `wish` as
        // that says it has.
        let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &wish, 0) };
    }
}

#[allow(unsafe_code)]
fn attributes() -> Option<libc::sched_attr> {
    // SAFETY: the structure is plain data, for which zeros are valid; the call is given its size.
    unsafe {
        let mut attributes: libc::sched_attr = mem::zeroed();
        let size = mem::size_of_val(&attributes) as libc::c_uint;
        (libc::syscall(libc::SYS_sched_getattr, 0, &mut attributes, size, 0) == 0).then_some(attributes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Whether the kernel knows slices of a thread's own: Linux 6.12 and later.
    fn has_slices() -> bool {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
        let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(6), Some(12))
    }

    /// The niceness that the thread has before a test: tests may run at another one.
    #[allow(unsafe_code)]
    fn begin_at(nice: i32) {
        // SAFETY: a plain system call about the calling thread.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    }

    #[test]
    fn niceness_adds_to_that_of_the_program() {
        let nice = std::thread::spawn(|| {
            begin_at(7);
            be_nice();
            attributes().expect("attributes").sched_nice
        });
        assert!(nice.join().expect("no panic") >= 17, "the program had 7 at least");
    }

    #[test]
    fn slices_are_short_and_niceness_stays() {
        // Threads of their own: niceness is not given back without privileges.
        let nice = std::thread::spawn(|| {
            begin_at(0);
            be_nice();
            let before = attributes().expect("attributes");
            ask_for_short_slices();
            (before, attributes().expect("attributes"))
        });
        let (before, after) = nice.join().expect("no panic");
        assert_eq!((before.sched_nice, after.sched_nice), (NICE, NICE));
        assert_eq!((after.sched_policy, after.sched_flags), (before.sched_policy, before.sched_flags));
        if has_slices() {
            assert_ne!(before.sched_runtime, SLICE);
            assert_eq!(after.sched_runtime, SLICE);
        }
    }
}
