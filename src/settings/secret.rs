//! The files whose content is a secret. Errors name the file and never show what is in it.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

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

/// The secret in a file, any bytes. `said` is where the path comes from, with the path.
pub(super) fn read_secret(said: &str, path: &Path) -> Result<Vec<u8>, String> {
    let secret = read_up_to(path, SECRET_MAX).map_err(|e| format!("{said}{e}"))?;
    if secret.len() < SECRET_MIN || secret.len() > SECRET_MAX {
        return Err(format!("{said} does not hold a secret of {SECRET_MIN} to {SECRET_MAX} bytes"));
    }
    Ok(secret)
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

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, CONTENT).expect("written");
        let both = |path: &Path| [read_secret("--f", path).map(|_| ()), read_token("--f", path).map(|_| ())];
        for mode in [0o644, 0o640, 0o604, 0o660, 0o602, 0o610] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
            for sentence in both(&path).map(|read| read.expect_err("refused")) {
                assert!(sentence.starts_with("--f ") && sentence.contains(&format!("{mode:o}")), "{sentence}");
                assert!(sentence.contains(&format!("chmod 600 {}", path.display())), "{sentence}");
            }
        }
        for mode in [0o600, 0o400, 0o700] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("changed");
            assert_eq!(read_secret("--f", &path).as_deref(), Ok(CONTENT.as_bytes()));
        }
        // It may be a link, as where it is mounted into a container.
        let link = folder.path().join("link");
        symlink(&path, &link).expect("linked");
        assert_eq!(read_secret("--f", &link).as_deref(), Ok(CONTENT.as_bytes()));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("changed");
        assert!(read_secret("--f", &link).is_err(), "what counts is where it leads");
    }

    #[test]
    fn what_is_no_file_or_belongs_to_somebody_else_is_no_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let (pipe, path) = (folder.path().join("pipe"), folder.path().join("secret"));
        let made = std::process::Command::new("mkfifo").arg("-m600").arg(&pipe).status().expect("mkfifo runs");
        assert!(made.success());
        for no_file in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            let sentence = read_secret("--f", no_file).expect_err("refused");
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
