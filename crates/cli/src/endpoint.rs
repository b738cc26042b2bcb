//! How commands reach a running server: which one, as whom, how long they wait, and what a refusal means for the exit status.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use client::Client;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use server::config::Inputs;
use server::config::kinds::Value;
use tls::ClientTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

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
const FLAGS: [&str; 7] = ["--endpoints", "--timeout", "--token-file", "--profile", "--ca", "--cert", "--key"];

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

/// How a server is asked: as whom, and whom it must be vouched for by.
#[derive(Clone, Copy)]
pub(crate) struct As<'a> {
    pub(crate) token: Option<&'a str>,
    pub(crate) tls: Option<&'a ClientTls>,
}

/// A server's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl EndpointArgs {
    /// Who asks the servers for tasks. The socket in the data directory is for operators.
    ///
    /// # Errors
    /// An address or the token cannot be used.
    pub(crate) fn client(&self) -> Result<Client> {
        let token = self.token()?;
        let mut builder =
            Client::builder(self.endpoints().into_iter().filter(|endpoint| !endpoint.starts_with(SOCKET)))
                .timeout(self.timeout)
                .patience(self.timeout);
        if let Some(token) = token {
            builder = builder.token(&token);
        }
        if let Some(tls) = self.trust.read()? {
            builder = builder.tls(tls);
        }
        Ok(builder.build()?)
    }

    /// Asks the first server that answers. With a body it is a POST.
    ///
    /// # Errors
    /// None of them answers.
    pub(crate) fn ask(&self, path: &str, body: Option<&str>) -> Result<Answer> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        self.send(&method, path, body, self.timeout)
    }

    /// Has something done by the first server that can be reached. It may take `extra` time to be done.
    ///
    /// # Errors
    /// None of them answers, or one has not answered in time: it may have done it.
    pub(crate) fn act(&self, method: &Method, path: &str, body: &str, extra: Duration) -> Result<Answer> {
        self.send(method, path, Some(body), self.timeout + extra)
    }

    fn send(&self, method: &Method, path: &str, body: Option<&str>, longest: Duration) -> Result<Answer> {
        let mut failures = Vec::new();
        for (endpoint, answer) in self.answers(method, path, body, longest)? {
            match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) => failures.push(format!("{endpoint}: {failure:#}")),
            }
        }
        bail!("no server answers; {}", failures.join("; "))
    }

    /// Writes the body of a page of the first server that can be reached. What is refused is answered as text.
    ///
    /// # Errors
    /// None of them can be reached, or the body breaks off or cannot be written.
    pub(crate) fn download(&self, path: &str, to: &mut dyn Write) -> Result<Answer> {
        let (token, tls) = (self.token()?, self.trust.read()?);
        let who = As { token: token.as_deref(), tls: tls.as_ref() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut failures, endpoints) = (Vec::new(), self.endpoints());
        for endpoint in &endpoints {
            // Once a part of the body is written, another server's would not follow it.
            match runtime.block_on(download(endpoint, path, who, to, self.timeout.max(SLOWEST))) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failures.push(format!("{endpoint}: {failure:#}")),
            }
        }
        bail!("no server answers; {}", failures.join("; "))
    }

    /// Sends a file to the first server that can be reached, as the body of a PUT. It may take `extra` time to be taken in.
    ///
    /// # Errors
    /// None of them can be reached, or the file cannot be read, or the server has not answered in time: it may have done it.
    pub(crate) fn upload(&self, path: &str, file: &Path, extra: Duration) -> Result<Answer> {
        let (token, tls) = (self.token()?, self.trust.read()?);
        let who = As { token: token.as_deref(), tls: tls.as_ref() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut failures = Vec::new();
        for endpoint in &self.endpoints() {
            let body = FileBody::open(file)?;
            let begun = begin(&Method::PUT, endpoint, path, who, body);
            match runtime.block_on(async { timeout(self.timeout, begun).await? }) {
                Ok(begun) => {
                    return runtime.block_on(async { timeout(self.timeout + extra, answer(begun)).await? });
                }
                // Who cannot be reached has begun nothing.
                Err(failure) => failures.push(format!("{endpoint}: {failure:#}")),
            }
        }
        bail!("no server answers; {}", failures.join("; "))
    }

    /// What the servers say, in turn, up to the first that answers.
    pub(crate) fn each(&self, path: &str) -> Vec<(String, Result<Answer>)> {
        let answers = self.answers(&Method::GET, path, None, self.timeout);
        answers.unwrap_or_else(|error| vec![("?".into(), Err(error))])
    }

    fn answers(
        &self,
        method: &Method,
        path: &str,
        body: Option<&str>,
        longest: Duration,
    ) -> Result<Vec<(String, Result<Answer>)>> {
        let (token, tls) = (self.token()?, self.trust.read()?);
        let who = As { token: token.as_deref(), tls: tls.as_ref() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut answers = Vec::new();
        for endpoint in self.endpoints() {
            let asked = send(method, &endpoint, path, who, body);
            let answer = runtime.block_on(async { tokio::time::timeout(longest, asked).await });
            let is_late = answer.is_err();
            let answer = answer.unwrap_or_else(|_| bail!("no answer within {longest:?}"));
            // What may have been done is not asked for again.
            let is_last = answer.is_ok() || (is_late && *method != Method::GET);
            answers.push((endpoint, answer));
            if is_last {
                break;
            }
        }
        Ok(answers)
    }

    /// How long a server may take to answer.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
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

    /// What connections are encrypted with.
    pub(crate) fn trust(&self) -> Result<Option<ClientTls>> {
        self.trust.read()
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

/// One request on a connection of its own.
///
/// # Errors
/// The server cannot be reached, or does not speak HTTP.
pub(crate) async fn request(endpoint: &str, path: &str, token: Option<&str>, body: Option<&str>) -> Result<Answer> {
    let method = if body.is_some() { Method::POST } else { Method::GET };
    send(&method, endpoint, path, As { token, tls: None }, body).await
}

async fn send(method: &Method, endpoint: &str, path: &str, who: As<'_>, body: Option<&str>) -> Result<Answer> {
    answer(begin(method, endpoint, path, who, text(body)).await?).await
}

/// A body that is a text, or none.
pub(crate) fn text(body: Option<&str>) -> Full<Bytes> {
    Full::new(Bytes::from(body.unwrap_or_default().to_owned()))
}

/// What a connection is asked for, and the connection.
pub(crate) type Begun<B> = (SendRequest<B>, Connection<TokioIo<Box<dyn Socket>>, B>, Request<B>);

async fn answer<B>((mut sender, connection, request): Begun<B>) -> Result<Answer>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let answered = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    tokio::pin!(connection, answered);
    tokio::select! {
        answer = &mut answered => answer,
        // Whatever ended the connection, the answer may have come before.
        _ = &mut connection => answered.await,
    }
}

/// A socket, or an encrypted one.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A connection of its own, and what to ask on it.
///
/// # Errors
/// The server cannot be reached.
pub(crate) async fn begin<B>(method: &Method, endpoint: &str, path: &str, who: As<'_>, body: B) -> Result<Begun<B>>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let socket = endpoint.strip_prefix(SOCKET).map(PathBuf::from);
    let endpoint = if socket.is_some() { "localhost" } else { endpoint };
    let (rest, is_https) = match endpoint.strip_prefix("https://") {
        Some(rest) => (rest, true),
        None => (endpoint.strip_prefix("http://").unwrap_or(endpoint), false),
    };
    let rest = rest.trim_end_matches('/');
    let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let port = if is_https { 443 } else { 80 };
    let address = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
    let stream: Box<dyn Socket> = if let Some(path) = &socket {
        Box::new(UnixStream::connect(path).await?)
    } else if is_https {
        let stream = TcpStream::connect(&address).await?;
        let tls = who.tls.context("name the authority that vouches for the server, with --ca FILE or CODEQ_CA")?;
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        Box::new(tls.connect(host.trim_start_matches('[').trim_end_matches(']'), stream).await?)
    } else {
        Box::new(TcpStream::connect(&address).await?)
    };
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    let mut request = Request::builder().method(method.clone()).uri(format!("{prefix}{path}")).header(HOST, authority);
    if let Some(token) = who.token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    Ok((sender, connection, request.body(body)?))
}

async fn download(endpoint: &str, path: &str, who: As<'_>, to: &mut dyn Write, longest: Duration) -> Result<Answer> {
    let (mut sender, connection, request) = begin(&Method::GET, endpoint, path, who, text(None)).await?;
    let answered = async {
        let response = timeout(longest, sender.send_request(request)).await??;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if status != 200 {
            let body = body.collect().await?.to_bytes();
            return anyhow::Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() });
        }
        while let Some(frame) = timeout(longest, body.frame()).await? {
            if let Ok(bytes) = frame?.into_data() {
                to.write_all(&bytes)?;
            }
        }
        Ok(Answer { status, body: String::new() })
    };
    tokio::pin!(connection, answered);
    tokio::select! {
        answer = &mut answered => answer,
        // Whatever ended the connection, the answer may have come before.
        _ = &mut connection => answered.await,
    }
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
