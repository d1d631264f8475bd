"""DDPG: an actor that learns one number per step from what a critic thinks of it."""

import keras
import numpy as np
import tensorflow as tf

# Lillicrap et al., 2016, with the sizes and rates of AMC.
_UNITS, _ACTOR_RATE, _CRITIC_RATE, _MIXED = 300, 1e-4, 1e-3, 0.01
_NOISE, _NOISE_DECAY, _BATCH, _BASELINE = 0.5, 0.95, 64, 0.5


class DDPG:
    """An agent whose actions are numbers from 0 to 1.

    Args:
        state_size: int: numbers that describe a state.
        capacity: int: how many transitions are remembered.
        seed: int.

    Source: Lillicrap et al., "Continuous control with deep reinforcement learning",
    2016; He et al., "AMC", 2018: rewards minus a moving average, discount 1, noise
    cut off to where actions are valid.
    """

    def __init__(self, state_size: int, capacity: int, seed: int = 0):
        self._random = np.random.default_rng(seed)
        make = _Networks(state_size, seed)
        self._actor, self._critic = make.actor(), make.critic()
        self._slow_actor, self._slow_critic = make.actor(), make.critic()
        self._slow_actor.set_weights(self._actor.get_weights())
        self._slow_critic.set_weights(self._critic.get_weights())
        self._actor_optimizer = keras.optimizers.Adam(_ACTOR_RATE)
        self._critic_optimizer = keras.optimizers.Adam(_CRITIC_RATE)
        self._actor_optimizer.build(self._actor.trainable_variables)
        self._critic_optimizer.build(self._critic.trainable_variables)
        self._memory = _Memory(capacity, state_size)
        self._baseline = None
        self._act = tf.function(self._actor)
        self._train = tf.function(self._step)

    def act(self, state) -> float:
        """Returns the action that the actor takes."""
        return float(self._act(np.float32(state)[None])[0, 0])

    def explore(self, state, episode: int) -> float:
        """Returns the actor's action with noise that shrinks from episode to episode.

        Args:
            state: float array.
            episode: int: how many episodes the agent has learned from; negative for
                actions drawn evenly.
        """
        if episode < 0:
            return float(self._random.random())
        mean, spread = self.act(state), _NOISE * _NOISE_DECAY**episode
        for _ in range(100):
            action = self._random.normal(mean, spread)
            if 0 <= action <= 1:
                return float(action)
        return float(np.clip(mean, 0, 1))

    def remember(self, states, actions, reward: float) -> None:
        """Remembers an episode, all of whose steps get the reward of its end.

        Args:
            states: float array of shape `(steps, state_size)`.
            actions: float array of shape `(steps,)`, as they were carried out.
            reward: float.
        """
        self._memory.add(states, actions, reward)

    def learn(self, steps: int) -> None:
        """Trains both networks on batches of what is remembered.

        Args:
            steps: int: number of batches.
        """
        for _ in range(steps):
            batch = self._memory.draw(self._random, _BATCH)
            mean = float(batch["reward"].mean())
            old = mean if self._baseline is None else self._baseline
            self._baseline = old + _BASELINE * (mean - old)
            batch["reward"] = batch["reward"] - np.float32(self._baseline)
            self._train(**{name: tf.constant(value) for name, value in batch.items()})

    def _step(self, state, action, reward, following, goes_on):
        later = self._slow_critic([following, self._slow_actor(following)])
        target = reward + goes_on * later
        with tf.GradientTape() as tape:
            error = self._critic([state, action]) - target
            loss = tf.reduce_mean(tf.square(error))
        _apply(self._critic_optimizer, tape, loss, self._critic)
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self._critic([state, self._actor(state)]))
        _apply(self._actor_optimizer, tape, loss, self._actor)
        pairs = (self._slow_actor, self._actor), (self._slow_critic, self._critic)
        for slow, fast in pairs:
            for old, new in zip(slow.variables, fast.variables, strict=True):
                old.assign(old + _MIXED * (new - old))


def _apply(optimizer, tape, loss, network) -> None:
    variables = network.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    optimizer.apply(gradients, variables)


class _Networks:
    """Makes actors and critics: two hidden layers each.

    In float32 throughout, also where the model is trained in half precision.
    """

    def __init__(self, state_size: int, seed: int):
        self._size, self._seeds = state_size, iter(range(1000 * seed, 1000 * seed + 99))

    def _hidden(self, x):
        for _ in range(2):
            initializer = keras.initializers.HeNormal(seed=next(self._seeds))
            x = _dense(_UNITS, "relu", initializer)(x)
        return x

    def _last(self, x, activation):
        # Small: actions begin around the middle, values around zero.
        initializer = keras.initializers.RandomUniform(
            -3e-3, 3e-3, seed=next(self._seeds)
        )
        return _dense(1, activation, initializer)(x)

    def actor(self):
        state = keras.Input((self._size,), dtype="float32")
        return keras.Model(state, self._last(self._hidden(state), "sigmoid"))

    def critic(self):
        state = keras.Input((self._size,), dtype="float32")
        action = keras.Input((1,), dtype="float32")
        x = keras.layers.Concatenate(dtype="float32")([state, action])
        return keras.Model([state, action], self._last(self._hidden(x), None))


def _dense(units, activation, initializer):
    return keras.layers.Dense(
        units, activation, kernel_initializer=initializer, dtype="float32"
    )


class _Memory:
    """The last transitions, in a ring."""

    def __init__(self, capacity: int, state_size: int):
        self._arrays = {
            "state": np.zeros((capacity, state_size), np.float32),
            "action": np.zeros((capacity, 1), np.float32),
            "reward": np.zeros((capacity, 1), np.float32),
            "following": np.zeros((capacity, state_size), np.float32),
            "goes_on": np.zeros((capacity, 1), np.float32),
        }
        self._capacity, self._seen = capacity, 0

    def add(self, states, actions, reward: float) -> None:
        count = len(states)
        places = (self._seen + np.arange(count)) % self._capacity
        states = np.asarray(states, np.float32)
        new = {
            "state": states,
            "action": np.reshape(actions, (count, 1)),
            "reward": np.full((count, 1), reward),
            "following": np.concatenate([states[1:], states[-1:]]),
            "goes_on": np.arange(count)[:, None] < count - 1,
        }
        for name, values in new.items():
            self._arrays[name][places] = values
        self._seen += count

    def draw(self, random, count: int) -> dict:
        places = random.integers(0, min(self._seen, self._capacity), count)
        return {name: array[places] for name, array in self._arrays.items()}
