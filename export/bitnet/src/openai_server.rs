//! A server of OpenAI's API, over plain HTTP: a server elsewhere is reached through a tunnel or a
//! proxy.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::failure::{ServerFailed, WrongFlag};
use crate::key_file;

/// A server answers a connection within that time.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Where a server is and how it is asked.
pub(crate) struct OpenAiServer {
    agent: Agent,
    /// Without a slash at the end.
    base: String,
    key: Option<String>,
}

impl OpenAiServer {
    /// The server at an address that `flag` gave; the first key of a file is sent along.
    pub(crate) fn new(flag: &str, address: &str, key_file: Option<&Path>) -> anyhow::Result<Self> {
        let is_plain = address.strip_prefix("http://").is_some_and(|host| !host.is_empty());
        if !is_plain {
            let what = "expected an address such as http://127.0.0.1:8080";
            return Err(WrongFlag(format!("{flag} {address}: {what}")).into());
        }
        let key =
            key_file.map(key_file::keys).transpose()?.and_then(|keys| keys.into_iter().next());
        // A status other than success has a body that says why. No proxy of the environment: the
        // address is asked directly.
        let config = Agent::config_builder().http_status_as_error(false).proxy(None);
        let config = config.timeout_connect(Some(CONNECT_TIME)).build();
        // Other clients want the address with `/v1`; both are taken.
        let base = address.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Self { agent: config.into(), base, key })
    }

    /// Asks for a path such as `/v1/models`.
    pub(crate) fn get(&self, path: &str) -> Result<Response<Body>, ServerFailed> {
        let asked = self.agent.get(format!("{}{path}", self.base));
        let asked = match &self.key {
            Some(key) => asked.header("Authorization", format!("Bearer {key}")),
            None => asked,
        };
        asked.call().map_err(|error| self.failed(&error))
    }

    /// Sends an object to a path such as `/v1/chat/completions`.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Response<Body>, ServerFailed> {
        let asked = self.agent.post(format!("{}{path}", self.base));
        let asked = asked.header("Content-Type", "application/json");
        let asked = match &self.key {
            Some(key) => asked.header("Authorization", format!("Bearer {key}")),
            None => asked,
        };
        asked.send(body.to_string()).map_err(|error| self.failed(&error))
    }

    pub(crate) fn failed(&self, what: &dyn std::fmt::Display) -> ServerFailed {
        ServerFailed(format!("{}: {what}", self.base))
    }

    /// The object of an answer; the inner error is for a status other than success.
    pub(crate) fn whole(
        &self,
        mut answer: Response<Body>,
    ) -> Result<Result<Value, Value>, ServerFailed> {
        let status = answer.status();
        let text = answer.body_mut().read_to_string().map_err(|error| self.failed(&error))?;
        let value = serde_json::from_str(&text).unwrap_or_else(
            |_| json!({"error": {"message": format!("answered with status {status}")}}),
        );
        Ok(if status.is_success() { Ok(value) } else { Err(value) })
    }
}

/// What an object of an error says.
pub(crate) fn error_message(error: &Value) -> String {
    let text = error["error"]["message"].as_str();
    text.unwrap_or("answered with an error that says nothing").to_owned()
}
