"""An application of Ray Serve that is not ours."""
from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Theirs:
    async def __call__(self, request):
        return "theirs"


app = Theirs.bind()
