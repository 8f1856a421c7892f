//! The files whose content is a secret. Errors name the file and never show what is in it.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use koltso_net::replica::Secrets;

/// Bytes of the secret that the nodes share: 128 bits cannot be guessed.
const SECRET_MIN: usize = 16;
const SECRET_MAX: usize = 4096;
/// Characters of a token that opens something here: random hexadecimal digits are then 64 bits,
/// letters of base64 96.
const TOKEN_MIN: usize = 16;
const TOKEN_MAX: usize = 4096;

/// The permissions of everybody but the owner.
const OTHERS: u32 = 0o077;

/// The file without one line end, if it is not longer than `most`; else a little more than that.
/// What others than this user and root may read or write is no secret. A symbolic link is followed.
///
/// # Errors
/// The end of a sentence about the file.
fn read_up_to(path: &Path, most: usize) -> Result<Vec<u8>, String> {
    // A pipe that nobody writes to is not waited for.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|e| format!(": {e}"))?;
    let metadata = file.metadata().map_err(|e| format!(": {e}"))?;
    if !metadata.is_file() {
        return Err(" is not a file".to_owned());
    }
    if metadata.mode() & OTHERS != 0 {
        return Err(format!(
            " can be read or changed by others (its permissions are {:o}): take that away with chmod 600 {}",
            metadata.mode() & 0o777,
            path.display()
        ));
    }
    let me = user();
    if metadata.uid() != me && metadata.uid() != 0 {
        return Err(format!(
            " belongs to another user ({}), who can read it: take it over with chown {me} {}",
            metadata.uid(),
            path.display()
        ));
    }
    let mut content = Vec::new();
    file.take(most as u64 + 2).read_to_end(&mut content).map_err(|e| format!(": {e}"))?;
    if content.last() == Some(&b'\n') {
        content.pop();
    }
    Ok(content)
}

/// The user that this process acts as.
#[allow(unsafe_code)]
fn user() -> u32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The secrets in a file: one of any bytes, or two lines of text, of which the first is used and both are
/// accepted. `said` is where the path comes from, with the path.
///
/// # Errors
/// One sentence that begins with `said`.
pub(super) fn read_secrets(said: &str, path: &Path) -> Result<Secrets, String> {
    let content = read_up_to(path, 2 * SECRET_MAX + 1).map_err(|e| format!("{said}{e}"))?;
    // A secret of random bytes may have a line end in it, and any may end in one.
    let is_text = content.iter().all(|&byte| byte == b'\n' || (b' '..=b'~').contains(&byte));
    let secrets: Vec<Vec<u8>> = if is_text && content.last() != Some(&b'\n') {
        content.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect()
    } else {
        vec![content]
    };
    if secrets.len() > 2 {
        return Err(format!("{said} has {} lines: a secret is one line, and two while it is replaced", secrets.len()));
    }
    if secrets.iter().any(|secret| secret.len() < SECRET_MIN || secret.len() > SECRET_MAX) {
        let each = if secrets.len() > 1 { " in each of its lines" } else { "" };
        return Err(format!("{said} does not hold a secret of {SECRET_MIN} to {SECRET_MAX} bytes{each}"));
    }
    Ok(Secrets::new(secrets))
}

/// The token in a file, with blanks around it removed. `said` is where the path comes from, with
/// the path, such as `--token-file /etc/koltso/token`.
///
/// # Errors
/// One sentence that begins with `said`.
pub fn read_token(said: &str, path: &Path) -> Result<String, String> {
    let content = read_up_to(path, TOKEN_MAX).map_err(|e| format!("{said}{e}"))?;
    let token = content.trim_ascii();
    if token.is_empty() || content.len() > TOKEN_MAX || !token.iter().all(u8::is_ascii_graphic) {
        return Err(format!("{said} does not hold one token of printable characters"));
    }
    Ok(String::from_utf8_lossy(token).into_owned())
}

/// The token in a file that opens the control plane of this node, which nobody can guess if it is
/// random: see [`read_token`].
///
/// # Errors
/// One sentence that begins with `said`.
pub(super) fn read_own_token(said: &str, path: &Path) -> Result<String, String> {
    let token = read_token(said, path)?;
    let length = token.len();
    if length < TOKEN_MIN {
        return Err(format!(
            "{said} holds a token of {length} characters, which can be guessed; it needs {TOKEN_MIN} at least, such as \
             `openssl rand -hex 16` gives"
        ));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const CONTENT: &str = "a secret of enough bytes";

    fn of(secrets: &[&str]) -> Secrets {
        Secrets::new(secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect())
    }

    #[test]
    fn two_lines_are_two_secrets_and_other_bytes_are_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let read = |content: &[u8]| {
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("changed");
            read_secrets("--f", &path)
        };
        let other = "another one, long enough";
        assert_eq!(read(format!("{CONTENT}\n").as_bytes()), Ok(of(&[CONTENT])));
        for end in ["", "\n"] {
            assert_eq!(read(format!("{CONTENT}\n{other}{end}").as_bytes()), Ok(of(&[CONTENT, other])));
        }
        let random = b"\xff random \n bytes of enough \x00 length";
        assert_eq!(read(random), Ok(Secrets::new(vec![random.to_vec()])));
        assert_eq!(read(format!("{CONTENT}\n\n").as_bytes()), Ok(of(&[&format!("{CONTENT}\n")])));
        let longest = "s".repeat(SECRET_MAX);
        assert_eq!(read(format!("{longest}\n{longest}\n").as_bytes()), Ok(of(&[&longest, &longest])));
        for (content, why) in [
            (format!("{CONTENT}\n{other}\n{other}\n"), "--f has 3 lines"),
            (format!("{CONTENT}\nshort\n"), "16 to 4096 bytes in each of its lines"),
            (format!("{longest}s"), "16 to 4096 bytes"),
            (format!("{longest}\n{longest}s"), "16 to 4096 bytes"),
        ] {
            let sentence = read(content.as_bytes()).expect_err("refused");
            assert!(sentence.starts_with("--f ") && sentence.contains(why), "{sentence}");
        }
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, CONTENT).expect("written");
        let both = |path: &Path| [read_secrets("--f", path).map(|_| ()), read_token("--f", path).map(|_| ())];
        for mode in [0o644, 0o640, 0o604, 0o660, 0o602, 0o610] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
            for sentence in both(&path).map(|read| read.expect_err("refused")) {
                assert!(sentence.starts_with("--f ") && sentence.contains(&format!("{mode:o}")), "{sentence}");
                assert!(sentence.contains(&format!("chmod 600 {}", path.display())), "{sentence}");
            }
        }
        for mode in [0o600, 0o400, 0o700] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
            assert_eq!(read_secrets("--f", &path), Ok(of(&[CONTENT])));
        }
        // It may be a link, as where it is mounted into a container.
        let link = folder.path().join("link");
        symlink(&path, &link).expect("linked");
        assert_eq!(read_secrets("--f", &link), Ok(of(&[CONTENT])));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("changed");
        assert!(read_secrets("--f", &link).is_err(), "what counts is where it leads");
    }

    #[test]
    fn what_is_no_file_or_belongs_to_somebody_else_is_no_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let (pipe, path) = (folder.path().join("pipe"), folder.path().join("secret"));
        let made = std::process::Command::new("mkfifo").arg("-m600").arg(&pipe).status().expect("mkfifo runs");
        assert!(made.success());
        for no_file in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            let sentence = read_secrets("--f", no_file).expect_err("refused");
            assert_eq!(sentence, "--f is not a file");
        }
        fs::write(&path, CONTENT).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("changed");
        if user() == 0 {
            std::os::unix::fs::chown(&path, Some(12_345), None).expect("root may");
            let sentence = read_token("--f", &path).expect_err("refused");
            assert!(sentence.contains("another user (12345)") && sentence.contains("chown 0"), "{sentence}");
        }
    }
}
