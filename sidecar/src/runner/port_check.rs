//! Whether the app's own port can be reached without the sidecar.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::upstream::UpstreamSettings;

/// A connection within the machine is there at once.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// An address of the documentation's range: nothing is sent there, the system only says which own address it would take.
const SOMEWHERE_ELSE: &str = "192.0.2.1:9";

/// `None`: the app is on another machine, or this one has no address but the loopback.
pub(super) async fn is_port_exposed(upstream: &UpstreamSettings) -> Option<bool> {
    let own_address = own_address().filter(|_| upstream.is_local())?;

    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(SocketAddr::new(own_address, upstream.port))).await;
    Some(matches!(connected, Ok(Ok(_))))
}

/// The address under which other machines see this one.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(SOMEWHERE_ELSE).ok()?;

    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_app_that_listens_everywhere_is_exposed_and_one_on_the_loopback_is_not() {
        // A machine without any other address cannot be reached from elsewhere.
        if own_address().is_none() {
            return;
        }

        for (address, expected) in [("0.0.0.0:0", true), ("127.0.0.1:0", false)] {
            let listener = TcpListener::bind(address).await.unwrap();
            let upstream = UpstreamSettings::new("127.0.0.1", listener.local_addr().unwrap().port());
            assert_eq!(is_port_exposed(&upstream).await, Some(expected), "{address}");
        }
        assert_eq!(is_port_exposed(&UpstreamSettings::new("app.example.org", 80)).await, None);
    }
}
