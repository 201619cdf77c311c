"""Bad networks: between the controller and Redis, and between the controller and the API server.

Times come from clocks that belong to neither side of the link: when Redis has added an entry, and when the log says
that it was received.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.bare import BareSystem, reading_s, warnings_since
from tests.e2e.controller import Controller
from tests.e2e.kube_server import KubeServer
from tests.e2e.system import logged_at, sent_at
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

#: Long: whatever waits for it is seen at once.
_LEASE_S = 60
_BLOCK_S = 2.0
_BACK_S = 2.0
_BACK_AFTER_SILENCE_S = _BLOCK_S + 3.0
_DEAD_WATCH_S = 42.0
#: Of an outage of some seconds: three loops and a few workers say it once, twice, and then ever less often.
_FEW_LINES = 20


@dataclass(frozen=True)
class Links:
    """A system; its controllers have a proxy before each of their servers."""

    system: BareSystem
    redis: TcpProxy
    kube: TcpProxy
    environ: dict[str, str]

    def start(self, **environ: str) -> Controller:
        """A controller behind the proxies."""
        return self.system.start(**{**self.environ, **environ})

    def send(self, **fields: object) -> str:
        """A scale_up, past the proxies."""
        return self.system.send(type="scale_up", **fields)


@pytest.fixture
def links(bare_system: Callable[[], BareSystem], own_kube: KubeServer) -> Iterator[Links]:
    """A system of this test's own, with no controller yet."""
    system = bare_system()
    redis, kube = TcpProxy(system.server.port), TcpProxy(own_kube.port)
    environ = {
        "REDIS_PORT": str(redis.port),
        "KUBECONFIG": str(own_kube.kubeconfig_at(kube.port)),
        "LEASE_S": str(_LEASE_S),
    }
    yield Links(system, redis, kube, environ)
    redis.close()
    kube.close()


def command(name: str) -> bytes:
    """How a word stands in a request to Redis."""
    return b"$%d\r\n%s\r\n" % (len(name), name.encode())


class TestLostAnswers:
    """Redis has carried it out, and the link breaks before its answer: nothing waits for a lease."""

    def test_of_a_read(self, links: Links) -> None:
        """The event is pending, and found there."""
        controller = links.start()
        links.redis.lose_answer_to(b"XREADGROUP")
        wait_for(lambda: links.redis.lost, "a read whose answer will be lost")
        event_id = links.send()
        assert reading_s(controller, event_id) < _BACK_S
        pods = links.system.run(event_id)
        links.system.succeed(pods)
        links.system.once(event_id, pods)

    def test_of_an_acceptance(self, links: Links) -> None:
        """Redis has recorded the acceptance, and the controller has not received the answer."""
        controller = links.start()
        links.redis.lose_answer_to(command("accept"))
        event_id = links.send(pod_count=2)
        assert reading_s(controller, event_id) < _BACK_S
        pods = links.system.run(event_id, 2)
        links.system.succeed(pods)
        links.system.once(event_id, pods)
        assert links.redis.lost == 1

    def test_of_a_record(self, links: Links) -> None:
        """The result is stored, and not stored again."""
        links.start()
        event_id = links.send(pod_count=2)
        pods = links.system.run(event_id, 2)
        links.redis.lose_answer_to(command("record_result"), 2)
        links.system.succeed(pods)
        links.system.once(event_id, pods)
        assert links.redis.lost == 2

    def test_of_an_attempt(self, links: Links) -> None:
        """It is stored; the pod is made once, in its first attempt."""
        links.start()
        links.redis.lose_answer_to(command("store_attempt"), 2)
        event_id = links.send(pod_count=2)
        pods = links.system.run(event_id, 2)
        links.system.succeed(pods)
        links.system.once(event_id, pods)
        assert links.redis.lost == 2

    def test_of_a_burial(self, links: Links) -> None:
        """One dead letter, and a line about it."""
        controller = links.start()
        links.redis.lose_answer_to(command("dead_letter"))
        sent = links.send(pod_count="many")
        controller.until_said("event.dead", stream_id=sent)
        assert len(links.system.dead_letters(sent)) == 1
        assert links.redis.lost == 1

    def test_of_a_take_over_at_the_start(self, links: Links) -> None:
        """Redis has given the task to this incarnation, which has not received the answer."""
        first = links.start()
        event_id = links.send()
        pods = links.system.run(event_id)
        first.kill()
        links.redis.lose_answer_to(command("take_over"))
        second = links.start()
        line = second.until_said("task.taken", event_id=event_id)
        assert logged_at(line) - logged_at(second.said("controller.started")[0]) < 2 * _BACK_S
        assert links.redis.lost == 1
        links.system.succeed(pods)
        links.system.once(event_id, pods)

    def test_of_a_take_over_from_another(self, links: Links) -> None:
        """Nor does it take a second lease, when the first has run out."""
        lease_s = 6
        first = links.start(LEASE_S=str(lease_s))
        event_id = links.send()
        pods = links.system.run(event_id)
        second = links.start(LEASE_S=str(lease_s), REDIS_CONSUMER="otto-1")
        links.redis.lose_answer_to(command("take_over"))
        killed = time.time()
        first.kill()
        line = second.until_said("task.taken", event_id=event_id)
        assert logged_at(line) - killed < lease_s + 2 + _BACK_S
        assert links.redis.lost == 1
        links.system.succeed(pods)
        links.system.once(event_id, pods)


class TestBroken:
    """The link breaks, and is there again."""

    def test_redis_is_read_again_within_two_seconds(self, links: Links) -> None:
        """After it was refused for a while, and after a mere cut; the log says it in few lines."""
        controller = links.start()
        took = []
        for away_s in (0.4, 1.1, 1.9, 2.8, 3.6):
            before = len(controller.lines)
            links.redis.refuse()
            time.sleep(away_s)
            healed = time.time()
            links.redis.heal()
            took.append(reading_s(controller, links.send(), healed))
            links.redis.cut()
            took.append(reading_s(controller, links.send()))
            assert len(warnings_since(controller, before)) <= _FEW_LINES, warnings_since(controller, before)
        print("refused, cut, ...:", [round(each, 2) for each in took])
        assert max(took) <= _BACK_S, took

    def test_kubernetes_is_watched_again(self, links: Links) -> None:
        """Ends that happened meanwhile are reported soon after."""
        links.start()
        took = []
        for away_s in (0.5, 2.0, 4.0):
            event_id = links.send(pod_count=2)
            pods = links.system.run(event_id, 2)
            links.kube.refuse()
            links.system.succeed(pods)
            time.sleep(away_s)
            healed = time.time()
            links.kube.heal()
            links.system.once(event_id, pods)
            took.append(time.time() - healed)
        print("refused:", [round(each, 2) for each in took])
        assert max(took) < 6, took

    def test_half_a_message(self, links: Links) -> None:
        """On both links, time and again: nothing is lost, nothing twice."""
        controller = links.start()
        for _ in range(4):
            links.redis.halve_answers(3)
            links.kube.halve_answers(2)
            event_id = links.send(pod_count=3)
            assert reading_s(controller, event_id) < 2 * _BACK_S
            pods = links.system.run(event_id, 3)
            links.system.succeed(pods)
            links.system.once(event_id, pods)
        assert links.redis.lost == 12
        assert links.kube.lost == 8

    def test_delay(self, links: Links) -> None:
        """Every message comes late, in both directions: slower, and all the same."""
        controller = links.start()
        links.redis.delay_s = links.kube.delay_s = 0.2
        event_id = links.send(pod_count=3)
        assert 2 * links.redis.delay_s < reading_s(controller, event_id) < 4 * _BACK_S
        pods = links.system.run(event_id, 3)
        links.system.succeed(pods)
        links.system.once(event_id, pods)
        assert {result["attempt"] for result in links.system.results(event_id)} == {"1"}
        assert not controller.said("lease.outage")


class TestSilent:
    """Nothing comes any more, and no error says so: only time-outs help."""

    def test_both_links(self, links: Links) -> None:
        """A dead watch is noticed within 42 s: what ended meanwhile is reported then. While it lasts, the link to Redis
        dies time and again, and events are read within a block and 3 s.
        """
        controller = links.start()
        event_id = links.send()
        pods = links.system.run(event_id)
        controller.until_said("task.monitoring", event_id=event_id)
        assert links.kube.freeze() >= 1
        frozen = time.time()
        links.system.succeed(pods)
        took = [self._frozen(links, controller) for _ in range(5)] + [self._silent(links, controller, 3.0)]
        print("Redis frozen 5 times, silent once:", [round(each, 2) for each in took])
        assert max(took) <= _BACK_AFTER_SILENCE_S, took
        line = controller.until_said("worker.finished", _DEAD_WATCH_S, event_id=event_id)
        print("watch:", round(logged_at(line) - frozen, 2))
        assert logged_at(line) - frozen <= _DEAD_WATCH_S
        links.system.once(event_id, pods)

    @staticmethod
    def _frozen(links: Links, controller: Controller) -> float:
        """The connections there are die; new ones are good."""
        assert links.redis.freeze() >= 1
        event_id = links.send()
        took = reading_s(controller, event_id)
        key = f"otto:scale:task:{event_id}"
        wait_for(lambda: links.system.redis.hget(key, "attempt:1"), "its worker to begin")
        return took

    @staticmethod
    def _silent(links: Links, controller: Controller, seconds: float) -> float:
        """New ones are silent as well, for a while."""
        links.redis.silence()
        event_id = links.send()
        time.sleep(seconds)
        links.redis.heal()
        return reading_s(controller, event_id, sent_at(event_id) + seconds)
