from twisted.trial.unittest import SynchronousTestCase
from tests.helpers import *
class T(SynchronousTestCase):
    def test_plain(self):
        g = Harness(self); c = g.dial(post(chat("hello"))); g.provider.say("Hel","lo"); g.provider.stop(); g.settle(c)
        a = c.answer(); print(a.status, a.headers, a.json, g.provider.seen, g.provider.requests[0].system); print(g.access)
    def test_stream(self):
        g = Harness(self); c = g.dial(post(chat("hello", stream=True, stream_options={"include_usage":True}))); 
        self.assertEqual(c.received, b"")
        g.provider.say("Hel","lo"); g.settle(c); print(c.events()); g.provider.stop(); g.settle(c)
        print(c.answer().body.decode()); print(g.clock.getDelayedCalls())
    def test_leave(self):
        g = Harness(self); c = g.dial(post(chat("hello", stream=True))); g.provider.say("Hel"); g.settle(c); c.leave(); g.settle(); 
        print(g.store.turns[0][1], g.provider.closed, g.access)
    def test_err(self):
        g = Harness(self); c = g.dial(post({"messages":5})); print(c.answer().json)
        for b in ({"messages":[{"role":"x"}]}, {"messages":[{"role":"user","content":[{"type":"image_url"}]}]}, [], {"messages":[{"role":"user","content":5}], "n":2}, {"temperature": 99,"messages":[]}):
            c.send(post(b)); print(c.answer().json)
