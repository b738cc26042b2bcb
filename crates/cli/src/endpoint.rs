//! How commands reach a running server: which one, as whom, how long they wait, and what a refusal means for the exit status.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use client::{AnyRequest, Builder, Client, Error, Repeat};
use server::config::Inputs;
use server::config::kinds::Value;
use tls::ClientTls;

use crate::file_body::FileBody;
use crate::{output, profile};

/// No leader, or no quorum.
pub(crate) const UNAVAILABLE: u8 = 3;
/// The change would leave the cluster without a majority.
const GUARDED: u8 = 4;
/// Not allowed.
pub(crate) const FORBIDDEN: u8 = 5;

/// A server copies its data before it sends the first piece of a backup.
const SLOWEST: Duration = Duration::from_secs(120);

/// Which server to ask, and how.
#[derive(Args)]
pub(crate) struct EndpointArgs {
    /// Servers to ask, as URLs separated by commas: the first that answers. Without it, those of the profile, else the one on this machine as
    /// the settings in the environment have it, by the socket in its data directory (unix:PATH) or by its port.
    #[arg(long, value_name = "URL,…", env = "CODEQ_ENDPOINTS", hide_env_values = true, value_delimiter = ',')]
    endpoints: Vec<String>,
    /// How long a server may take to answer.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = crate::flags::duration)]
    timeout: Duration,
    /// File with a token, for servers that ask for one. Without it, the variable CODEQ_TOKEN, else the profile's.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Name of a profile: a table with `endpoints` and `token-file` in the file profiles.toml in ~/.config/codeq, or in the folder
    /// CODEQ_CONFIG_DIR.
    #[arg(long, value_name = "NAME", env = "CODEQ_PROFILE", hide_env_values = true)]
    profile: Option<String>,
    #[command(flatten)]
    trust: TrustArgs,
}

/// The flags of [`EndpointArgs`]; each takes a value.
pub(crate) const FLAGS: [&str; 7] =
    ["--endpoints", "--timeout", "--token-file", "--profile", "--ca", "--cert", "--key"];

/// The arguments of this process, with those of [`FLAGS`] that stand before the command moved behind it, where the command takes them.
pub(crate) fn behind_the_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let mut end = args.len().min(1);
    while let Some(arg) = args.get(end).and_then(|arg| arg.to_str()) {
        let (flag, is_whole) = arg.split_once('=').map_or((arg, false), |(flag, _)| (flag, true));
        if !FLAGS.contains(&flag) {
            break;
        }
        end += if is_whole { 1 } else { 2 };
    }
    let moved: Vec<OsString> = args.drain(args.len().min(1)..end.min(args.len())).collect();
    // What follows belongs to another program.
    let place = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    args.splice(place..place, moved);
    args
}

/// Whom to trust where a server speaks HTTPS.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TrustArgs {
    /// File with the authorities that vouch for servers; nobody else does. Needed for https:// addresses.
    #[arg(long, value_name = "FILE", env = "CODEQ_CA", hide_env_values = true)]
    ca: Option<PathBuf>,
    /// File with a certificate to show to servers that ask for one.
    #[arg(long, value_name = "FILE", env = "CODEQ_CERT", hide_env_values = true, requires = "key")]
    cert: Option<PathBuf>,
    /// File with its key.
    #[arg(long, value_name = "FILE", env = "CODEQ_KEY", hide_env_values = true)]
    key: Option<PathBuf>,
}

impl TrustArgs {
    /// What connections are encrypted with; nothing: nobody is trusted.
    pub(crate) fn read(&self) -> Result<Option<ClientTls>> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let Some(ca) = &self.ca else { return Ok(None) };
        let own = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        let own = own.as_ref().map(|(cert, key)| (cert.as_slice(), key.as_slice()));
        Ok(Some(ClientTls::new(&read(ca)?, own)?))
    }
}

/// A server's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl From<client::Answer> for Answer {
    fn from(answer: client::Answer) -> Answer {
        Answer { status: answer.status, body: String::from_utf8_lossy(&answer.body).into_owned() }
    }
}

impl EndpointArgs {
    /// Who asks the servers for tasks. The socket in the data directory is for operators.
    ///
    /// # Errors
    /// An address or the token cannot be used.
    pub(crate) fn client(&self) -> Result<Client> {
        let endpoints = self.endpoints().into_iter().filter(|endpoint| !endpoint.starts_with(SOCKET));
        Ok(self.builder(endpoints.collect(), self.trust.read()?)?.patience(self.timeout).build()?)
    }

    /// Who asks them as an operator does: each once, in turn.
    ///
    /// # Errors
    /// An address or the token cannot be used.
    pub(crate) fn operator(&self) -> Result<Client> {
        self.operator_at(self.endpoints())
    }

    fn operator_at(&self, mut endpoints: Vec<String>) -> Result<Client> {
        let tls = self.trust.read()?;
        if tls.is_none() {
            // Another one may do, as the socket beside a port that speaks HTTPS.
            endpoints.retain(|endpoint| !endpoint.starts_with("https://"));
            if endpoints.is_empty() {
                bail!("name the authority that vouches for the server, with --ca FILE or CODEQ_CA");
            }
        }
        Ok(self.builder(endpoints, tls)?.build()?)
    }

    fn builder(&self, endpoints: Vec<String>, tls: Option<ClientTls>) -> Result<Builder> {
        let builder = Client::builder(endpoints).timeout(self.timeout).connect_timeout(self.timeout);
        let builder = self.token()?.iter().fold(builder, |builder, token| builder.token(token));
        Ok(tls.into_iter().fold(builder, Builder::tls))
    }

    /// Asks the first server that answers. With a body it is a POST.
    ///
    /// # Errors
    /// None of them answers.
    pub(crate) fn ask(&self, path: &str, body: Option<&str>) -> Result<Answer> {
        let post = |body: &str| AnyRequest::post(path, body.to_owned(), Repeat::IfDefinite);
        self.act(body.map_or_else(|| AnyRequest::get(path), post), Duration::ZERO)
    }

    /// Has something done by the first server that can be reached. It may take `extra` time to be done.
    ///
    /// # Errors
    /// None of them answers, or one has not answered in time: it may have done it.
    pub(crate) fn act(&self, request: AnyRequest, extra: Duration) -> Result<Answer> {
        let client = self.operator()?;
        Ok(on_a_runtime(client.first_answer(request.waiting(extra)))??.into())
    }

    /// Writes the body of a page of the first server that can be reached. What is refused is answered as text.
    ///
    /// # Errors
    /// None of them can be reached, or the body breaks off or cannot be written.
    pub(crate) fn download(&self, path: &str, to: &mut dyn Write) -> Result<Answer> {
        let (client, longest) = (self.operator()?, self.timeout.max(SLOWEST));
        on_a_runtime(async {
            let mut pieces = client.stream(AnyRequest::get(path).waiting(longest - self.timeout)).await?;
            if pieces.status != 200 {
                return Ok(pieces.whole().await?.into());
            }
            // Once a part of the body is written, another server's would not follow it.
            while let Some(piece) = pieces.next(longest).await? {
                to.write_all(&piece)?;
            }
            Ok(Answer { status: 200, body: String::new() })
        })?
    }

    /// Sends a file to the first server that can be reached, as the body of a PUT. It may take `extra` time to be taken in.
    ///
    /// # Errors
    /// None of them can be reached, or the file cannot be read, or the server has not answered in time: it may have done it.
    pub(crate) fn upload(&self, path: &str, file: &Path, extra: Duration) -> Result<Answer> {
        let (client, body) = (self.operator()?, FileBody::open(file)?);
        Ok(on_a_runtime(client.upload(AnyRequest::put(path).waiting(extra), body))??.into())
    }

    /// What the servers say, in turn, up to the first that answers.
    pub(crate) fn each(&self, path: &str) -> Vec<(String, Result<Answer>)> {
        let mut answers = Vec::new();
        for endpoint in self.endpoints() {
            let answer = self.operator_at(vec![endpoint.clone()]).and_then(|client| {
                match on_a_runtime(client.first_answer(AnyRequest::get(path)))? {
                    Ok(answer) => Ok(answer.into()),
                    // There is but one, which the caller names.
                    Err(Error::Unavailable(why)) => {
                        bail!("{}", why.trim_start_matches(client.endpoint()).trim_start_matches(": "))
                    }
                    Err(error) => Err(error.into()),
                }
            });
            let is_last = answer.is_ok();
            answers.push((endpoint, answer));
            if is_last {
                break;
            }
        }
        answers
    }

    /// The token to show, if there is one.
    ///
    /// # Errors
    /// Its file, or the profile, cannot be read.
    pub(crate) fn token(&self) -> Result<Option<String>> {
        let profile = profile::read(self.profile.as_deref())?;
        let variable = || std::env::var("CODEQ_TOKEN").ok().filter(|token| !token.is_empty());
        let path = match (&self.token_file, variable()) {
            (Some(path), _) => path.clone(),
            (None, Some(token)) => return Ok(Some(token)),
            (None, None) => match profile.token_file {
                Some(path) => path,
                None => return Ok(None),
            },
        };
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(text.trim().into()))
    }

    /// The servers that are asked, in turn.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let given: Vec<String> = self.endpoints.iter().filter(|endpoint| !endpoint.is_empty()).cloned().collect();
        if !given.is_empty() {
            return given;
        }
        // A profile that cannot be read has been told of with the token.
        let of_profile = profile::read(self.profile.as_deref()).unwrap_or_default().endpoints;
        if of_profile.is_empty() { own() } else { of_profile }
    }
}

/// How a socket in the file system is named among servers.
const SOCKET: &str = "unix:";

/// This machine's server, as its settings say: by the socket in its data directory, if there is one, else by its port.
fn own() -> Vec<String> {
    let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let values = Inputs { flags: Vec::new(), environment: named.collect() }.read().values;
    let Some(Value::Addr(mut address)) = values.get("http.addr").value.clone() else {
        unreachable!("http.addr is an address with a default");
    };
    if address.is_unspecified() {
        address.host = "127.0.0.1".into();
    }
    let scheme = if values.is_given("http.cert") { "https" } else { "http" };
    let socket = server::socket::path(values.shown("dataDir").as_ref());
    let socket = socket.exists().then(|| format!("{SOCKET}{}", socket.display()));
    socket.into_iter().chain([format!("{scheme}://{address}")]).collect()
}

/// Does it on a runtime of its own, in this thread.
///
/// # Errors
/// There can be none.
pub(crate) fn on_a_runtime<T>(work: impl Future<Output = T>) -> Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

/// Says what went wrong when nobody answered.
pub(crate) fn unanswered(error: &anyhow::Error) -> ExitCode {
    output::note(&format!("error: {error:#}"));
    ExitCode::FAILURE
}

/// Says why a server refused, and what that is as an exit status.
pub(crate) fn refused(answer: &Answer) -> ExitCode {
    let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let text = [&problem["detail"], &problem["error"]].into_iter().find_map(|text| text.as_str());
    output::note(&format!("error: {} (status {})", text.unwrap_or(answer.body.trim()), answer.status));
    if let Some(hint) = problem["hint"].as_str() {
        output::note(&format!("hint: {hint}"));
    }
    match answer.status {
        409 if problem["code"] == "quorum_guard" => ExitCode::from(GUARDED),
        401 | 403 => ExitCode::from(FORBIDDEN),
        503 => ExitCode::from(UNAVAILABLE),
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &str, expected: &str) {
        let args = args.split(' ').map(OsString::from);
        let moved = behind_the_command(args).iter().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>();
        assert_eq!(moved.join(" "), expected);
    }

    /// Goal: what says which server to ask means the same before a command and behind it; a program's own arguments stay its own.
    #[test]
    fn flags_may_stand_before_the_command() {
        check("codeq --endpoints a,b leader", "codeq leader --endpoints a,b");
        check(
            "codeq --endpoints=a --timeout 1s leader transfer c",
            "codeq leader transfer c --endpoints=a --timeout 1s",
        );
        check("codeq --ca c worker run -- p --key k", "codeq worker run --ca c -- p --key k");
        check("codeq leader --endpoints a", "codeq leader --endpoints a");
        check("codeq --help", "codeq --help");
        check("codeq --endpoints", "codeq --endpoints");
        check("codeq", "codeq");
    }
}
