//! Requests to a web server: credentials, redirects, time-outs, retries.

use aws_smithy_types::body::SdkBody;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::{Authority, Scheme};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config::{Credentials, Patience, S3Options};
use crate::error::{Error, Kind, Result, chain};
use crate::metrics::RETRIES;
use crate::store::connector::{Pool, Trouble, count, pool, trouble};

const MAX_REDIRECTS: u32 = 10;

/// Asks one server, and whoever it redirects to.
pub struct Client {
    pool: Pool<SdkBody>,
    authorization: Option<HeaderValue>,
    patience: Patience,
}

/// What came back.
pub struct Answer {
    pub response: Response<Incoming>,
    /// Whether who answered was shown our credentials.
    pub authorized: bool,
    /// Whether it was another address than the one asked.
    pub redirected: bool,
}

impl Client {
    /// # Errors
    /// A CA bundle that can't be used.
    pub fn new(credentials: Option<&Credentials>, options: &S3Options) -> Result<Client> {
        let authorization = credentials.map(|credentials| {
            let pair = format!("{}:{}", credentials.user, credentials.password);
            let value = format!("Basic {}", aws_smithy_types::base64::encode(pair));
            // Base64 is always a header's text.
            let mut value = HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static(""));
            value.set_sensitive(true);
            value
        });
        Ok(Client { pool: pool(options)?, authorization, patience: options.patience })
    }

    /// How long the server is waited for.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Sends a request without a body, up to `attempts` times where that may help; `what` names its object. Any answer that isn't worth
    /// another attempt is one, errors too.
    ///
    /// # Errors
    /// `Unreachable`, `TimedOut`, or an answer that isn't HTTP or redirects where we don't go.
    pub async fn send(
        &self,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        attempts: u32,
        what: &str,
    ) -> Result<Answer> {
        let Patience { first_byte, .. } = self.patience;
        let attempts = attempts.min(self.patience.attempts);
        let deadline = Instant::now() + first_byte * 2;
        let mut attempt = 1;
        loop {
            let follow = self.follow(&method, uri, &headers, what, |request| self.ask(request, what));
            let sent = timeout(first_byte, follow);
            let answer = match timeout_at(deadline, sent).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => Err(Error::new(
                    Kind::TimedOut,
                    format!("{what}: the remote doesn't answer in time; check the network and --remote"),
                )),
            };
            let again = match &answer {
                Ok(answer) => is_overload(answer.response.status()),
                Err(error) => matches!(error.kind(), Kind::Unreachable | Kind::TimedOut),
            };
            let pause = self.patience.pause(attempt);
            if !again || attempt >= attempts || Instant::now() + pause >= deadline {
                return answer;
            }
            attempt += 1;
            RETRIES.count();
            sleep(pause).await;
        }
    }

    /// One attempt, through all redirects. `ask` sends each request, to which it may give a body.
    ///
    /// # Errors
    /// `ask`'s, and a redirect to where we don't go.
    pub async fn follow<F>(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        what: &str,
        ask: impl Fn(Request<SdkBody>) -> F,
    ) -> Result<Answer>
    where
        F: Future<Output = Result<Response<Incoming>>>,
    {
        let (mut at, mut at_home) = (uri.clone(), true);
        for hop in 0..=MAX_REDIRECTS {
            let mut request = Request::new(SdkBody::empty());
            *request.method_mut() = method.clone();
            *request.uri_mut() = at.clone();
            *request.headers_mut() = headers.clone();
            // Whoever else has been asked might send us anywhere.
            at_home &= is_same_server(&at, uri);
            let authorization = self.authorization.as_ref().filter(|_| at_home);
            if let Some(value) = authorization {
                request.headers_mut().insert(header::AUTHORIZATION, value.clone());
            }
            let authorized = authorization.is_some();
            let response = ask(request).await?;
            match next_hop(&response, method, &at, what)? {
                Some(next) => at = next,
                None => return Ok(Answer { response, authorized, redirected: hop > 0 }),
            }
        }
        Err(Error::new(
            Kind::Remote,
            format!("{what}: redirected more than {MAX_REDIRECTS} times; check --remote"),
        ))
    }

    /// Sends one request and waits for its answer.
    ///
    /// # Errors
    /// `Unreachable`, `TimedOut`, or an answer that isn't HTTP.
    pub async fn ask(&self, request: Request<SdkBody>, what: &str) -> Result<Response<Incoming>> {
        count(request.method(), request.uri());
        self.pool.request(request).await.map_err(|e| unanswered(&e, what))
    }
}

/// Where `response` redirects to, if it does. Addresses of redirects aren't shown: they may hold signatures.
fn next_hop(response: &Response<Incoming>, method: &Method, from: &Uri, what: &str) -> Result<Option<Uri>> {
    match response.status().as_u16() {
        307 | 308 => {}
        // Others may mean that something is to be read there.
        301..=303 if *method != Method::PUT => {}
        _ => return Ok(None),
    }
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let Some(next) = location.and_then(|location| resolve(from, location)) else {
        return Err(Error::new(Kind::Remote, format!("{what}: redirected to no address; check --remote")));
    };
    if from.scheme() == Some(&Scheme::HTTPS) && next.scheme() == Some(&Scheme::HTTP) {
        let host = next.host().unwrap_or_default();
        return Err(Error::new(
            Kind::Remote,
            format!("{what}: redirected from https to http (at {host}), which is refused; check --remote"),
        ));
    }
    Ok(Some(next))
}

/// The address that `location` means in an answer from `base`.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let absolute = if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    let mut parts = absolute.parse::<Uri>().ok()?.into_parts();
    // Credentials in it are not for us to send.
    let authority = parts.authority?;
    let host = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host);
    parts.authority = Some(host.parse::<Authority>().ok()?);
    let web = parts.scheme.as_ref().is_some_and(|s| *s == Scheme::HTTP || *s == Scheme::HTTPS);
    if web { Uri::from_parts(parts).ok() } else { None }
}

/// Whether both are on one server: scheme, host and port.
fn is_same_server(a: &Uri, b: &Uri) -> bool {
    let port =
        |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
    let host = |uri: &Uri| uri.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

fn is_overload(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || status.is_server_error()
            && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED)
}

fn unanswered(error: &hyper_util::client::legacy::Error, what: &str) -> Error {
    let cause = chain(error);
    match trouble(error) {
        Trouble::TimedOut => Error::new(
            Kind::TimedOut,
            format!("{what}: the remote doesn't answer in time ({cause}); check the network and --remote"),
        ),
        Trouble::NotHttp | Trouble::Unasked => {
            Error::new(Kind::Remote, format!("{what}: the answer is not HTTP ({cause}); check --remote"))
        }
        Trouble::Io => Error::new(
            Kind::Unreachable,
            format!("{what}: can't reach the remote ({cause}); check the network and --remote"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_against_who_sent_them() {
        let base: Uri = "https://host:8443/a/b?x=1".parse().unwrap();
        for (location, resolved) in [
            ("https://other/c?s=%2F&t=http://x", Some("https://other/c?s=%2F&t=http://x")),
            ("//other/c", Some("https://other/c")),
            ("/c?next=https://x/y", Some("https://host:8443/c?next=https://x/y")),
            ("c#part", Some("https://host:8443/a/c")),
            ("http://user:pw@host:8443/a", Some("http://host:8443/a")),
            ("ftp://host/a", None),
            ("https://", None),
            ("a b", None),
        ] {
            let found = resolve(&base, location).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), resolved, "{location}");
        }
    }

    #[test]
    fn a_server_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| is_same_server(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://Host/a", "https://host:443/b") && same("http://h:80/", "http://h/"));
        assert!(!same("https://h/", "http://h/") && !same("http://h/", "http://h:81/"));
        assert!(!same("http://h/", "http://sub.h/"));
    }
}
