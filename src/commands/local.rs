//! `koltso local`: a whole cluster on this machine, each node a process of its own.
//!
//! Node i of N (from 1) serves on 127.0.0.1, port PORT + i - 1, and keeps its data in DIR/node-i.
//! All other settings of `serve`, from flags, variables and file, are passed on, each as a flag.
//! Errors in them, or in an address, are found before anything is started.
//!
//! The nodes share this process's standard error. Each begins its lines with its name (`node 1 | `)
//! and writes them whole, so nothing stands between a node and its log, and nodes go on when the
//! reader of the log has ended, or this process.
//!
//! Owner: the main thread starts, watches and ends the nodes; another thread asks for `/health`
//! until all answer.
//!
//! Invariants:
//! 1. No node outlives this process: each asks the kernel for SIGTERM when its parent dies. (The
//!    kernel sends it when the parent's *thread* dies, so only the main thread may start nodes.)
//! 2. A signal goes only to a process that has not been waited for yet, so never to a stranger.
//!
//! Bounds: 16 nodes, 60 s to become ready, 15 s to drain. Deliberately absent: restarts; a node
//! that was killed stays down, so that one can watch what the others do. Tested in
//! `tests/local.rs`.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::commands::serve::cores;
use crate::logging::{self, LogSettings};
use crate::settings::{self, NodeSettings, REPLICA_PORT_OFFSET, SharedFlags};
use crate::signals::{self, Ends};
use crate::units::whole;
use crate::usage;

/// The most nodes: they all share the processors.
const NODES_MAX: u16 = 16;
/// The largest HTTP port whose replica port is a valid port, too.
const PORT_MAX: u16 = u16::MAX - REPLICA_PORT_OFFSET;
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A node gives itself 10 s to finish what is in flight, and then syncs.
const DRAIN_WITHIN: Duration = Duration::from_secs(15);
const POLL_EVERY: Duration = Duration::from_millis(50);
const HEALTH_WITHIN: Duration = Duration::from_secs(1);

/// `koltso local`
#[derive(Args)]
pub struct Local {
    /// Number of nodes, 1 to 16
    #[arg(long, value_name = "N", default_value = "3", value_parser = whole::<u16>)]
    nodes: u16,
    /// The HTTP port of the first node; the others follow
    #[arg(long, value_name = "PORT", default_value = "1337", value_parser = whole::<u16>)]
    port: u16,
    #[command(flatten)]
    flags: SharedFlags,
}

/// What went wrong, and the exit code: 2 before the cluster was ready, 1 afterwards.
struct Failure(u8, String);

fn refused(sentence: String) -> Failure {
    Failure(2, sentence)
}

/// Runs the nodes until they are told to stop.
pub fn run(local: Local) -> ExitCode {
    match local.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, sentence)) => {
            logging::complain(&sentence);
            ExitCode::from(code)
        }
    }
}

/// A node that was started.
struct NodeProcess {
    /// The name of the node in messages: `node 2 (http://127.0.0.1:1338)`.
    name: String,
    /// How it is started, for a shell.
    command: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl NodeProcess {
    fn start(name: String, args: &[OsString]) -> Result<Self, String> {
        let mut command = Command::new(executable());
        command.arg("serve").args(args).stdin(Stdio::null());
        // What they say was read, and is among the arguments as far as it is for nodes.
        for (variable, _) in std::env::vars_os().filter(|(name, _)| settings::is_variable(name)) {
            command.env_remove(variable);
        }
        end_with_parent(&mut command);
        let child = command.spawn().map_err(|e| format!("{name} cannot be started: {e}"))?;
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let command = words.map(in_a_shell).collect::<Vec<_>>().join(" ");
        Ok(Self { name, command, child, ended: None })
    }

    fn lives(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether the node has ended since this was last asked.
    fn has_just_ended(&mut self) -> bool {
        if self.lives() {
            // The only possible error is that this is not our child, which it is until it is waited
            // for.
            self.ended = self.child.try_wait().unwrap_or_default();
            return !self.lives();
        }
        false
    }

    /// How the node ended, in two words.
    fn end(&self) -> String {
        match self.ended {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => status.to_string(),
            },
            None => "it lives".to_owned(),
        }
    }

    #[allow(unsafe_code)]
    fn terminate(&self) {
        if let (true, Ok(pid)) = (self.lives(), libc::pid_t::try_from(self.child.id())) {
            // SAFETY: this system call takes no pointers. By invariant 2 the process was not waited
            // for, so the id is still its own.
            let _ = unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }
}

/// A word of a command as a shell reads it.
fn in_a_shell(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,%+@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The path of this program. It is not `/proc/self/exe`, so that the nodes have the program's name
/// in `ps` and `top`.
fn executable() -> PathBuf {
    let path = std::env::current_exe().ok().filter(|path| path.exists());
    path.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// Makes the kernel send SIGTERM to the process that `command` starts when the calling thread ends.
#[allow(unsafe_code)]
fn end_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let ask = move || {
        // SAFETY: a plain system call without pointers.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before this call: then nobody would send anything.
        if parent_id() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: between fork and exec, `ask` makes two system calls, and it allocates and locks
    // nothing.
    unsafe {
        command.pre_exec(ask);
    }
}

/// Whether a node answers `/health` with 200.
fn is_healthy(address: SocketAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&address, HEALTH_WITHIN)?;
        socket.set_read_timeout(Some(HEALTH_WITHIN))?;
        socket.set_write_timeout(Some(HEALTH_WITHIN))?;
        socket.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut start = [0; b"HTTP/1.x 200".len()];
        socket.read_exact(&mut start)?;
        Ok(start.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

/// Asks one node after another until each is healthy; the error is the index of the first one that
/// was not in time.
fn all_healthy(addresses: &[SocketAddr]) -> Result<(), usize> {
    let deadline = Instant::now() + READY_WITHIN;
    for (index, &address) in addresses.iter().enumerate() {
        while !is_healthy(address) {
            if Instant::now() > deadline {
                return Err(index);
            }
            thread::sleep(POLL_EVERY);
        }
    }
    Ok(())
}

/// What wakes the main thread.
struct Signals {
    ends: Ends,
    child: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self { ends: Ends::catch()?, child: signal(SignalKind::child())? })
    }
}

impl Local {
    /// Checks everything that can be checked before a node is started.
    fn check(self) -> Result<Vec<NodeSettings>, String> {
        let Self { nodes, port, flags } = self;
        if nodes == 0 || nodes > NODES_MAX {
            return Err(format!("--nodes {nodes} is out of range: it is 1 to {NODES_MAX}"));
        }
        let last = u32::from(port) + u32::from(nodes) - 1;
        if port == 0 || last > u32::from(PORT_MAX) {
            return Err(format!("--port {port} is out of range: {nodes} nodes need ports from 1 to {PORT_MAX}"));
        }
        let ports: Vec<u16> = (port..=last as u16).collect();
        let (nodes, warnings) = flags.nodes(&ports)?;
        if let Some(NodeSettings { config, .. }) = nodes.first() {
            logging::configure(&LogSettings { name: None, ..config.log.clone() });
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        for NodeSettings { config, .. } in &nodes {
            let replica = config.cluster.as_ref().map(|cluster| cluster.replica_listen);
            for address in [Some(config.listen), replica].into_iter().flatten() {
                // The node will bind the port again. Without this test, the `/health` of another
                // program there would pass for the node's.
                cores::bind(address, 1).map_err(|e| format!("the address {address} cannot be used: {e}"))?;
            }
        }
        Ok(nodes)
    }

    fn run(self) -> Result<(), Failure> {
        signals::prepare();
        let nodes = self.check().map_err(|sentence| refused(usage::after_a_flag::<Self>("local", &sentence)))?;
        let cannot = |e: io::Error| refused(format!("the nodes cannot be watched: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
        runtime.block_on(async {
            // Before the first node exists, so that no signal is missed.
            let mut signals = Signals::catch().map_err(cannot)?;
            let mut started = Vec::with_capacity(nodes.len());
            for (number, NodeSettings { args, config }) in (1..).zip(&nodes) {
                match NodeProcess::start(format!("node {number} (http://{})", config.listen), args) {
                    Ok(node) => started.push(node),
                    Err(sentence) => {
                        let _ = drain(&mut started, &mut signals, false).await;
                        return Err(refused(sentence));
                    }
                }
            }
            let addresses: Vec<SocketAddr> = nodes.iter().map(|node| node.config.listen).collect();
            watch(&mut started, &mut signals, addresses).await
        })
    }
}

/// Watches the nodes from their start to their end.
async fn watch(nodes: &mut [NodeProcess], signals: &mut Signals, addresses: Vec<SocketAddr>) -> Result<(), Failure> {
    let urls: Vec<String> = addresses.iter().map(|address| format!("http://{address}")).collect();
    let (sender, mut healthy) = oneshot::channel();
    let ask = move || {
        let _ = sender.send(all_healthy(&addresses));
    };
    let asking = thread::Builder::new().name("koltso-health".to_owned()).spawn(ask);
    let mut ready = false;
    let failure = loop {
        if let Err(e) = &asking {
            break refused(format!("the nodes cannot be watched: {e}"));
        }
        tokio::select! {
            // Ctrl-C and the end of a terminal reach the nodes as well, so their ends are expected
            // then.
            biased;
            () = signals.ends.next() => return drain(nodes, signals, ready).await,
            _ = signals.child.recv() => {
                let ended: Vec<usize> = (0..nodes.len()).filter(|&index| nodes[index].has_just_ended()).collect();
                let alive = nodes.iter().any(NodeProcess::lives);
                if let Some(&first) = ended.first().filter(|_| !ready) {
                    break refused(format!("{} did not start: {}", nodes[first].name, nodes[first].end()));
                }
                for index in ended {
                    let (name, end) = (&nodes[index].name, nodes[index].end());
                    if alive {
                        let command = &nodes[index].command;
                        tracing::warn!("{name} ended: {end}; the others go on; bring it back with: {command}");
                    } else {
                        tracing::warn!("{name} ended: {end}; it was the last");
                    }
                }
                if !alive {
                    return Err(Failure(1, "no node is left".to_owned()));
                }
            }
            answer = &mut healthy, if !ready => match answer {
                Ok(Ok(())) => {
                    ready = true;
                    logging::say(&format!("cluster ready {}", urls.join(",")));
                }
                Ok(Err(index)) => break refused(format!("{} was not ready in {READY_WITHIN:?}", nodes[index].name)),
                Err(_) => break refused("the nodes cannot be watched: their health is unknown".to_owned()),
            },
        }
    };
    let _ = drain(nodes, signals, ready).await;
    Err(failure)
}

/// Ends the nodes that live. A node that was not ready yet may have had no handler for the signal,
/// and nothing to drain.
async fn drain(nodes: &mut [NodeProcess], signals: &mut Signals, ready: bool) -> Result<(), Failure> {
    let mut draining: Vec<&mut NodeProcess> = nodes.iter_mut().filter(|node| node.lives()).collect();
    draining.iter().for_each(|node| node.terminate());
    let all_end = async {
        loop {
            for node in &mut draining {
                node.has_just_ended();
            }
            if !draining.iter().any(|node| node.lives()) {
                return;
            }
            signals.child.recv().await;
        }
    };
    let late = tokio::time::timeout(DRAIN_WITHIN, all_end).await.is_err();
    let mut wrong = Vec::new();
    for node in draining {
        if late && node.lives() {
            let _ = node.child.kill();
            node.ended = node.child.wait().ok();
            wrong.push(format!("{} did not end within {DRAIN_WITHIN:?} and was killed", node.name));
        }
        let asked = |signal| [libc::SIGTERM, libc::SIGINT, libc::SIGHUP].contains(&signal);
        let unready = |status: ExitStatus| !ready && status.signal().is_some_and(asked);
        if !late && !node.ended.is_some_and(|status| status.success() || unready(status)) {
            wrong.push(format!("{} did not drain: {}", node.name, node.end()));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure(1, wrong.join("; "))) }
}
