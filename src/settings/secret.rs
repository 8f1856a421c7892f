//! The files whose content is a secret. Errors name the file and never show what is in it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of the secret that the nodes share: 128 bits cannot be guessed.
const SECRET_MIN: usize = 16;
const SECRET_MAX: usize = 4096;
/// Characters of a token that opens something here: random hexadecimal digits are then 64 bits, letters of base64 96.
const TOKEN_MIN: usize = 16;
const TOKEN_MAX: usize = 4096;

/// The file without one line end, if it is not longer than `most`; else a little more than that.
fn read_up_to(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(most as u64 + 2).read_to_end(&mut content)?;
    if content.last() == Some(&b'\n') {
        content.pop();
    }
    Ok(content)
}

/// The secret in a file, any bytes. `said` is where the path comes from, with the path.
pub(super) fn read_secret(said: &str, path: &Path) -> Result<Vec<u8>, String> {
    let secret = read_up_to(path, SECRET_MAX).map_err(|e| format!("{said}: {e}"))?;
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
    let content = read_up_to(path, TOKEN_MAX).map_err(|e| format!("{said}: {e}"))?;
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
