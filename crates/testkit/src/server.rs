//! A `koltso serve` process: started, watched, ended.
//!
//! Bounds: 30 s for the ready line, 20 s for a drain. Ports come from 12000-21999, below the range
//! the kernel gives to outgoing connections, and so do the replica ports (port + 10000).

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::json::{json_number, json_object};
use crate::process::send_signal;
use crate::{Client, eventually};

const READY_WITHIN: Duration = Duration::from_secs(30);
const RELEASED_WITHIN: Duration = Duration::from_secs(5);
const DRAIN_WITHIN: Duration = Duration::from_secs(20);

/// The program that Cargo built for these tests.
///
/// Cargo names it to tests of the package `koltso`: to their compiler always, to themselves since
/// 1.94. Before that it is found where Cargo puts it, one folder above the test programs.
#[track_caller]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("CARGO_BIN_EXE_koltso") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("koltso");
    assert!(path.is_file(), "there is no {}; `cargo build -p koltso` makes it", path.display());
    path
}

/// A port that is free now, with the replica port that belongs to it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(7919);
    for _ in 0..2000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + u16::try_from(start.wrapping_add(step) % 10_000).unwrap();
        let free = |port: u16| TcpListener::bind(("0.0.0.0", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
    panic!("no free port between 12000 and 22000");
}

/// How a server is to be started; can be used again and again.
#[derive(Clone)]
pub struct Launch {
    data: PathBuf,
    host: String,
    port: Option<u16>,
    flags: Vec<String>,
    within: Vec<String>,
    environment: Vec<(String, String)>,
    refused_calls: Option<RefusedCalls>,
}

/// System calls by number, from first to last, and the error that they are answered with.
#[derive(Clone, Copy)]
struct RefusedCalls {
    first: u32,
    last: u32,
    errno: i32,
}

/// A server that ended before it was ready.
#[derive(Debug)]
pub struct Refusal {
    pub status: ExitStatus,
    pub stderr: String,
}

impl Refusal {
    pub fn is_address_in_use(&self) -> bool {
        self.status.code() == Some(2) && self.stderr.to_lowercase().contains("in use")
    }
}

impl Launch {
    pub fn on(data: &Path) -> Launch {
        Launch {
            data: data.to_path_buf(),
            host: "127.0.0.1".to_owned(),
            port: None,
            flags: Vec::new(),
            within: Vec::new(),
            environment: Vec::new(),
            refused_calls: None,
        }
    }

    /// Further flags, separated by blanks.
    pub fn flags(mut self, flags: &str) -> Launch {
        self.flags.extend(flags.split_whitespace().map(str::to_owned));
        self
    }

    /// These flags, separated by blanks, and no others.
    pub fn only_flags(self, flags: &str) -> Launch {
        Launch { flags: Vec::new(), ..self }.flags(flags)
    }

    /// Through another command that becomes the server, such as `ip netns exec NAME`.
    pub fn within(mut self, command: &[&str]) -> Launch {
        self.within = command.iter().map(|&part| part.to_owned()).collect();
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Launch {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As the test program's own environment, again.
    pub fn usual_environment(mut self) -> Launch {
        self.environment.clear();
        self
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn host(mut self, host: &str) -> Launch {
        self.host = host.to_owned();
        self
    }

    pub fn port(mut self, port: u16) -> Launch {
        self.port = Some(port);
        self
    }

    /// As in a container with the usual seccomp profile: the system calls of io_uring are EPERM.
    pub fn refuse_io_uring(self) -> Launch {
        self.refuse_calls(libc::SYS_io_uring_setup, libc::SYS_io_uring_register, libc::EPERM)
    }

    /// As in a sandbox that answers the system calls from `first` to `last` with an error.
    pub fn refuse_calls(mut self, first: libc::c_long, last: libc::c_long, errno: i32) -> Launch {
        let number = |call: libc::c_long| u32::try_from(call).unwrap();
        self.refused_calls = Some(RefusedCalls { first: number(first), last: number(last), errno });
        self
    }

    /// Starts the server and waits for its ready line. Without a fixed port, tries others while
    /// they are taken.
    pub fn try_start(&self) -> Result<Server, Refusal> {
        let mut tries = 0;
        loop {
            tries += 1;
            let port = self.port.unwrap_or_else(free_port);
            match self.start_at(port) {
                Err(refusal) if self.port.is_none() && tries < 5 && refusal.is_address_in_use() => {}
                result => return result,
            }
        }
    }

    /// As `start`, but waits while the kernel still holds the address for a process that was killed
    /// a moment ago: what io_uring held is let go some 40 ms after the process is gone.
    /// `command_line/` tests a start without this patience.
    #[track_caller]
    pub fn start_after_an_end(&self) -> Server {
        let deadline = Instant::now() + RELEASED_WITHIN;
        loop {
            match self.try_start() {
                Ok(server) => return server,
                Err(refusal) if refusal.is_address_in_use() && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(refusal) => panic!("the server did not start again: {}\n{}", refusal.status, refusal.stderr),
            }
        }
    }

    #[track_caller]
    pub fn start(&self) -> Server {
        match self.try_start() {
            Ok(server) => server,
            Err(refusal) => panic!("the server did not start: {}\n{}", refusal.status, refusal.stderr),
        }
    }

    fn spawn(&self, listen: &str) -> Child {
        let mut command = match self.within.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program());
                command
            }
            None => Command::new(program()),
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(["serve", "--listen", listen, "--data"]).arg(&self.data).args(&self.flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        if let Some(calls) = self.refused_calls {
            #[allow(unsafe_code)]
            // SAFETY: what runs between fork and exec makes two system calls, and allocates and
            // locks nothing.
            unsafe {
                command.pre_exec(move || deny(calls));
            }
        }
        command.spawn().expect("starting the koltso binary")
    }

    fn start_at(&self, port: u16) -> Result<Server, Refusal> {
        let listen = format!("{}:{port}", self.host);
        let mut child = self.spawn(&listen);
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().unwrap();
        let sink = Arc::clone(&log);
        std::thread::spawn(move || sink.follow(stderr));
        let ready = format!("ready http://{listen}");
        if !log.wait_for(&ready, READY_WITHIN) {
            let ended = log.is_closed();
            if !ended {
                let _ = child.kill();
            }
            let status = child.wait().unwrap();
            assert!(ended, "no line {ready:?} within {READY_WITHIN:?}; the log:\n{}", log.text());
            return Err(Refusal { status, stderr: log.text() });
        }
        let launch = Launch { port: Some(port), ..self.clone() };
        Ok(Server { child, log, launch, folder: None, ended: None })
    }
}

/// What the server wrote to standard error, as it comes.
#[derive(Default)]
struct Log {
    state: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Log {
    fn follow(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            self.state.lock().unwrap().0.push(String::from_utf8_lossy(&line).into_owned());
            self.changed.notify_all();
        }
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    /// False when the stream ended or the time was up first.
    fn wait_for(&self, text: &str, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut state = self.state.lock().unwrap();
        loop {
            if state.0.iter().any(|line| line.contains(text)) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn is_closed(&self) -> bool {
        self.state.lock().unwrap().1
    }

    fn text(&self) -> String {
        self.state.lock().unwrap().0.join("\n")
    }
}

/// A running server; it ends with this guard.
pub struct Server {
    child: Child,
    log: Arc<Log>,
    launch: Launch,
    folder: Option<TempDir>,
    ended: Option<ExitStatus>,
}

impl Server {
    /// A server with these flags (separated by blanks) on an empty folder of its own.
    #[track_caller]
    pub fn fresh(flags: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Launch::on(&folder.path().join("data")).flags(flags).start();
        server.folder = Some(folder);
        server
    }

    pub fn data(&self) -> &Path {
        &self.launch.data
    }

    pub fn port(&self) -> u16 {
        self.launch.port.unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        let host = self.launch.host.parse::<IpAddr>().ok().filter(|host| !host.is_unspecified());
        SocketAddr::from((host.unwrap_or(IpAddr::from([127, 0, 0, 1])), self.port()))
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        self.log.text()
    }

    #[track_caller]
    pub fn connect(&self) -> Client {
        match Client::connect(self.address()) {
            Ok(client) => client,
            Err(error) => panic!("cannot connect to the server: {error}"),
        }
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn ask(&self, method: &str, target: &str) -> crate::Response {
        self.connect().request(method, target, &[], None)
    }

    /// Fails the test unless the process lives and serves: a value goes in and comes out over a new
    /// connection.
    #[track_caller]
    pub fn assert_serves(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the server has ended: {status}");
        }
        let mut client = self.connect();
        let key = format!("witness-{}", self.pid());
        client.store(&key, "alive");
        assert_eq!(client.value(&key).as_deref(), Some(&b"alive"[..]), "the server does not serve any more");
    }

    #[track_caller]
    pub fn signal(&self, signal: i32) {
        send_signal(self.pid(), signal);
    }

    /// SIGSTOP, and waits until no thread runs.
    #[track_caller]
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
        // The signal is only sent by then: a thread on another processor may go on for a moment,
        // and answer.
        let tasks = format!("/proc/{}/task", self.pid());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        eventually("every thread is stopped", Duration::from_secs(5), || {
            std::fs::read_dir(&tasks).unwrap().all(is_stopped)
        });
    }

    /// kill -9, and waits until the process is gone.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = Some(self.child.wait().unwrap());
        }
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = Some(status);
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not end within {within:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM; has to end with exit code 0.
    #[track_caller]
    pub fn terminate(&mut self) {
        self.signal(libc::SIGTERM);
        let status = self.wait(DRAIN_WITHIN);
        assert_eq!(status.code(), Some(0), "after SIGTERM: {status} (signal {:?})", status.signal());
    }

    /// Starts again after an end: same folder, flags and port.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.ended.is_some(), "start_again on a running server");
        let folder = self.folder.take();
        let mut again = self.launch.start_after_an_end();
        again.folder = folder;
        *self = again;
    }

    /// Starts again after an end, at once and only once.
    pub fn try_start_again(&mut self) -> Result<(), Refusal> {
        assert!(self.ended.is_some(), "try_start_again on a running server");
        let mut again = self.launch.try_start()?;
        again.folder = self.folder.take();
        *self = again;
        Ok(())
    }

    /// Starts again after an end and kills the process `after` a moment, whatever it is doing then.
    pub fn start_and_kill(&self, after: Duration) {
        assert!(self.ended.is_some(), "start_and_kill on a running server");
        let mut child = self.launch.spawn(&self.address().to_string());
        std::thread::sleep(after);
        let _ = child.kill();
        child.wait().unwrap();
    }

    /// The same folder with other flags, after an end.
    #[track_caller]
    pub fn start_again_with(&mut self, flags: &str) {
        self.launch.flags = flags.split_whitespace().map(str::to_owned).collect();
        self.start_again();
    }

    fn proc_status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("no {field} in {text}"));
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Anonymous resident memory, in KiB.
    pub fn anonymous_kib(&self) -> u64 {
        self.proc_status("RssAnon:")
    }

    pub fn descriptors_open(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Lets the server open files and sockets up to this many; those that it has stay. What it was
    /// allowed before.
    #[allow(unsafe_code)]
    pub fn limit_descriptors(&self, most: u64) -> u64 {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let pid = self.pid().cast_signed();
        // SAFETY: the calls get pointers to live, properly typed limits, or none.
        let set = unsafe {
            assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before), 0);
            let wanted = libc::rlimit { rlim_cur: most, ..before };
            libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const wanted, std::ptr::null_mut())
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        before.rlim_cur
    }

    /// How many connections the server holds in the state "established".
    pub fn established(&self) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let local = format!(":{:04X}", self.port());
        let ours = |line: &&str| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|address| address.ends_with(&local)) && fields.nth(1) == Some("01")
        };
        table.lines().filter(ours).count()
    }

    #[track_caller]
    pub fn status(&self) -> String {
        self.ask("GET", "/status").expect(200, "GET /status").text()
    }

    /// A number of /status's `storage` object.
    #[track_caller]
    pub fn storage_figure(&self, name: &str) -> u64 {
        let status = self.status();
        json_number(json_object(&status, "storage"), name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log.text());
        }
    }
}

/// A seccomp filter for this process and what it becomes.
fn deny(calls: RefusedCalls) -> std::io::Result<()> {
    let load = libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    let below = libc::sock_filter { code: 0x35, jt: 0, jf: 2, k: calls.first };
    let above = libc::sock_filter { code: 0x25, jt: 1, jf: 0, k: calls.last };
    let errno = calls.errno.cast_unsigned();
    let refuse = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | errno };
    let allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let mut filter = [load, below, above, refuse, allow];
    let program = libc::sock_fprog { len: 5, filter: filter.as_mut_ptr() };
    #[allow(unsafe_code)]
    // SAFETY: the program and its filter live until the calls are over; the kernel copies them.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Raises the limit of open files as far as it goes, for this process and the servers it starts;
/// what it is then.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    #[allow(unsafe_code)]
    // SAFETY: both calls get a pointer to a live, properly typed rlimit.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let wanted = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) == 0 {
            limit = wanted;
        }
    }
    limit.rlim_cur
}
